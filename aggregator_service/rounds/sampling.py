"""Which workers a round takes, where it does not take all of them.

Rules
    uniform             every subset is as likely as any other
    by examples         without replacement, each draw in proportion to the examples left
    power of choice     d candidates drawn by examples, of which those with the highest loss are
                        taken (Cho, Wang, Joshi, "Client Selection in Federated Learning:
                        Convergence Analysis and Power-of-Choice Selection Strategies", 2020,
                        arXiv:2010.01243, section 3)

A worker that has never reported counts as having as many examples as the others have on average,
and a higher loss than any: it is tried first. The run's seed, the round and who is there decide
everything, so a restarted server draws the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from aggregator_service.rounds.state import RunState
from fedlora.runs.rounds import RoundRules, Sampling
from fedlora.runs.seeds import derive_seed

__all__ = ["cohort_size", "sample"]


def cohort_size(rules: RoundRules) -> int:
    """Workers that a round asks, over-selection included; 0 for all."""
    return math.ceil(rules.cohort_size * (1 + rules.over_selection))


def sample(
    state: RunState, among: Sequence[str], count: int, *, purpose: str = "cohort"
) -> tuple[str, ...]:
    """`count` of some workers by the run's rule, sorted; all of them where there are no more.

    Args:
        state: of the run, at the round they are taken for.
        among: names to choose from.
        count: how many.
        purpose: makes draws of one round independent of each other.
    """
    names, rules = sorted(among), state.spec.rounds
    if count >= len(names):
        return tuple(names)
    generator = random.Random(derive_seed(state.spec.seed, state.round, purpose))  # noqa: S311
    if rules.sampling is Sampling.UNIFORM:
        return tuple(sorted(generator.sample(names, count)))
    if rules.sampling is Sampling.BY_EXAMPLES:
        return tuple(sorted(_by_examples(state, names, count, generator)))
    wanted = max(count, rules.sampling_candidates or 2 * count)
    candidates = _by_examples(state, names, min(wanted, len(names)), generator)
    losses = {name: state.workers[name].loss for name in candidates}
    unknown = [name for name in candidates if losses[name] is None]
    known = [(loss, name) for name, loss in losses.items() if loss is not None]
    # Sorting keeps the order of the draw among equals.
    highest = unknown + [name for _, name in sorted(known, key=lambda item: -item[0])]
    return tuple(sorted(highest[:count]))


def _by_examples(
    state: RunState, names: Sequence[str], count: int, generator: random.Random
) -> list[str]:
    examples = {name: state.workers[name].num_examples for name in names}
    known = [n for n in examples.values() if n > 0]
    mean = sum(known) / len(known) if known else 1.0
    left, drawn = list(names), list[str]()
    while len(drawn) < count:
        (name,) = generator.choices(left, weights=[examples[n] or mean for n in left])
        left.remove(name)
        drawn.append(name)
    return drawn
