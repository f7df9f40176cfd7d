"""Which workers a round takes, where it does not take all of them.

The run's client sampler (`samplers`) says it, from what its state knows of them. The run's seed,
the round and who is there decide everything, so a restarted server draws the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from aggregator_service.rounds.samplers.base import Candidate, ClientSampler
from aggregator_service.rounds.samplers.registry import create_sampler
from aggregator_service.rounds.state import RunState
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.rounds import RoundRules
from fedlora.runs.seeds import derive_seed

__all__ = ["cohort_size", "sample"]


def cohort_size(rules: RoundRules) -> int:
    """Workers that a round asks, over-selection included; 0 for all."""
    # Of 100 workers 7 % are 7, though the product of these floats is a little more.
    return rules.cohort_size + math.ceil(round(rules.cohort_size * rules.over_selection, 9))


def sample(
    state: RunState, among: Sequence[str], count: int, *, purpose: str = "cohort"
) -> tuple[str, ...]:
    """`count` of some workers by the run's sampler, sorted; all of them where there are no more.

    Args:
        state: of the run, at the round they are taken for.
        among: names to choose from.
        count: how many.
        purpose: makes draws of one round independent of each other.

    Raises:
        FedLoraError: INVALID_CONFIG for a sampler of another package that fails or takes none of
            such; as `create_sampler` where that package is gone.
    """
    names = sorted(among)
    if count >= len(names) or not count:
        return tuple(names[:count])
    candidates = tuple(_candidate(state, name) for name in names)
    generator = random.Random(derive_seed(state.spec.seed, state.round, purpose))  # noqa: S311
    sampler = create_sampler(state.spec.rounds)
    return tuple(sorted(_selected(sampler, candidates, count, generator)))


def _candidate(state: RunState, name: str) -> Candidate:
    worker = state.workers[name]
    return Candidate(
        name=name,
        num_examples=worker.num_examples,
        loss=worker.loss,
        num_tasks=worker.num_tasks,
        num_updates=worker.num_updates,
    )


def _selected(
    sampler: ClientSampler, candidates: Sequence[Candidate], count: int, generator: random.Random
) -> list[str]:
    try:
        # It may be another's: whatever it raises is its fault.
        taken = list(sampler.select(candidates, count, generator))
    except Exception as error:
        raise _at_fault(sampler, f"failed: {type(error).__name__}: {error}") from error
    names = [c.name for c in candidates]
    strangers = [name for name in taken if not (isinstance(name, str) and name in names)]
    if strangers or len(taken) != count or len({*taken}) != count:
        got, known = (", ".join(map(str, each))[:200] or "nobody" for each in (taken, names))
        raise _at_fault(sampler, f"took {got}; expected {count} different names of {known}")
    return taken


def _at_fault(sampler: ClientSampler, what: str) -> FedLoraError:
    return FedLoraError(
        Reason.INVALID_CONFIG,
        f"the client sampler {sampler.name} {what}",
        hint="Correct or uninstall that package (docs/extending.md)",
    )
