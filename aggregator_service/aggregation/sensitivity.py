"""How far the workers of a round have moved magnitudes and directions of A and B.

Source  the question is that of FedLoRA-Optimizer (Zhao et al. 2025, arXiv:2510.11274), which
        reports that A's directions and B's magnitudes move most. Its definitions are not known to
        us; these are ours, after DoRA's analysis (Liu et al. 2024, arXiv:2402.09353).
Rule    magnitude_change_a = sum_u w_u mean_j |m_uj - m0_uj|
        direction_change_a = sum_u w_u mean_j (1 - cos(v_uj, v0_uj)), from 0 to 2
        with m and v the lengths and directions of A's vectors as worker u sent them, m0 and v0 as
        it was given them; b likewise. `fedlora.adapters.axis` says which vectors those are.
Cost    4 R (D + K) flops per module, R = sum of ranks; no product is formed.

The means are over vectors that have a direction before and after. A worker that has none is left
out, and so is one whose rank is another than it was given. Where nobody is left, as for B in a
first round that begins at zero, nothing is measured. Where a plug-in makes more or less of an
update's change than it is (`update_shares`), that is what is measured, as in all of a certificate.

Shape suffixes: U clients that were given the same, N vectors of a factor.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.axis import MIN_NORM, Axis
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part

__all__ = ["movement"]

_FACTORS = (Part.A, Part.B)


def movement(cohort: ModuleCohort, axis: Axis, parts: Collection[Part]) -> dict[str, float]:
    """The changes of one module, by name.

    Args:
        cohort: what was sent, and what was given; where that is unknown there is nothing to say.
        axis: which vectors are split into magnitude and direction.
        parts: what workers have trained.
    """
    if cohort.sent is None:
        return {}
    # What was given is read once for all that were given the same.
    alike: dict[int, list[tuple[LoraFactors, LoraFactors, float]]] = {}
    for new, old, weight in zip(
        cohort.members, cohort.sent, cohort.weights_U.tolist(), strict=True
    ):
        if new.rank == old.rank:
            alike.setdefault(id(old), []).append((new, old, weight))
    found: dict[str, float] = {}
    for part in _FACTORS:
        if part not in parts:
            continue
        magnitude = direction = share = 0.0
        for group in alike.values():
            changes = _changes(
                [_factor(new, part) for new, _, _ in group],
                _factor(group[0][1], part),
                dim=axis.summed(part),
            )
            for (_, _, weight), (longer, turned) in zip(group, changes, strict=True):
                if not math.isnan(longer):
                    magnitude += weight * longer
                    direction += weight * turned
                    share += weight
        if share > 0:
            found[f"magnitude_change_{part.value}"] = magnitude / share
            found[f"direction_change_{part.value}"] = direction / share
    return found


def _factor(factors: LoraFactors, part: Part) -> Tensor:
    return factors.a_RK if part is Part.A else factors.b_DR


def _changes(factors: Sequence[Tensor], given: Tensor, *, dim: int) -> list[tuple[float, float]]:
    """Mean changes of magnitude and direction by factor; NaN without a vector to compare.

    What is of a factor's size is done in two buffers: fresh memory for each would cost more than
    the sums.
    """
    before = given.to(torch.float64)
    wide, squares = torch.empty_like(before), torch.empty_like(before)

    def lengths(vectors: Tensor) -> Tensor:
        # Not vector_norm, which takes twenty times as long across rows as along them.
        return torch.mul(vectors, vectors, out=squares).sum(dim=dim).sqrt_()

    before_N = lengths(before)
    both = [(lengths(wide.copy_(f)), lengths(wide.sub_(before))) for f in factors]
    after_UN, moved_UN = map(torch.stack, zip(*both, strict=True))
    compared_UN = (after_UN >= MIN_NORM) & (before_N >= MIN_NORM)
    longer_UN = after_UN - before_N
    # |x - y|^2 = (|x| - |y|)^2 + 2 |x| |y| (1 - cos), which keeps the digits of a small turn.
    turned_UN = (moved_UN.square() - longer_UN.square()) / (2 * after_UN * before_N)
    means = [
        torch.where(compared_UN, change, 0.0).sum(dim=1) / compared_UN.sum(dim=1)
        for change in (longer_UN.abs(), turned_UN.clamp(min=0))
    ]
    return list(zip(*(mean_U.tolist() for mean_U in means), strict=True))
