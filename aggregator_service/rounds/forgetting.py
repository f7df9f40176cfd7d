"""How much of what joined earlier a continual run has lost again.

Source  Chaudhry, Dokania, Ajanthan and Torr 2018, "Riemannian Walk for Incremental Learning",
        arXiv:1801.10112, section 4: of experience j after a round, f_j = max over earlier rounds of
        a_j, less a_j now; the mean over all experiences but the newest. It is negative where what
        came later made earlier experiences better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fedlora.runs.continual import ContinualSpec

__all__ = ["best_scores", "forgetting"]

_GROUPS = ("test", "held_out")
_JUDGED = ("accuracy", "token_accuracy")


def forgetting(
    stream: ContinualSpec, round: int, before: Mapping[str, float], metrics: Mapping[str, float]
) -> dict[str, float]:
    """The measure, by the name of a round's score.

    Args:
        stream: of the run.
        round: that has just been scored.
        before: the best scores of the rounds before it, as `best_scores` returned them.
        metrics: its pooled scores.

    Returns:
        ``test_forgetting`` and ``held_out_forgetting``; neither while there is one experience, nor
        where the round was not scored.
    """
    found: dict[str, float] = {}
    for group in _GROUPS:
        names = _names(group, range(1, stream.newest(round)), metrics)
        lost = [before[name] - metrics[name] for name in names if name in before]
        if lost:
            found[f"{group}_forgetting"] = math.fsum(lost) / len(lost)
    return found


def best_scores(
    stream: ContinualSpec, round: int, before: Mapping[str, float], metrics: Mapping[str, float]
) -> dict[str, float]:
    """The best score of each experience so far, this round included; arguments as `forgetting`."""
    best = dict(before)
    for group in _GROUPS:
        for name in _names(group, stream.joined(round), metrics):
            best[name] = max(best.get(name, metrics[name]), metrics[name])
    return best


def _names(group: str, experiences: range, metrics: Mapping[str, float]) -> list[str]:
    """The scores of experiences that a round has, in the first metric of which it has any."""
    for metric in _JUDGED:
        names = [f"{group}_experience_{number}_{metric}" for number in experiences]
        if found := [name for name in names if name in metrics]:
            return found
    return []
