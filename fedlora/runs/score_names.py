"""The names of scores, which way is better, and by which of them a round may be judged."""

from __future__ import annotations

from fedlora.adapters.spec import TaskType

__all__ = ["COSTS", "SHARES", "is_cost", "judged_scores"]

SHARES = ("accuracy", "macro_f1", "balanced_accuracy", "token_accuracy", "exact_match")
"""shares, in [0, 1]: more is better"""

COSTS = ("loss", "perplexity")
"""from 0 upwards: less is better"""

_BY_TASK = {
    TaskType.SEQUENCE_CLASSIFICATION: ("accuracy", "macro_f1", "balanced_accuracy", "loss"),
    TaskType.CAUSAL_LM: ("token_accuracy", "exact_match", "loss", "perplexity"),
}

_OF_THE_PUBLISHED = ("test", "held_out", "personal")


def is_cost(pooled: str) -> bool:
    """Whether less of a pooled score is better."""
    return pooled.endswith(COSTS)


def judged_scores(task: TaskType) -> tuple[str, ...]:
    """The pooled scores of published adapters that a run of a task has."""
    names = _BY_TASK[task]
    pooled = [f"{group}_{name}" for group in _OF_THE_PUBLISHED for name in names]
    return (*pooled, f"held_out_{names[0]}_worst_tenth")
