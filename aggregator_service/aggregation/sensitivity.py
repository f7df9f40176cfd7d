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

Shape suffixes: U clients, N vectors of a factor.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.polar import Axis, decompose
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
    pairs = zip(cohort.members, cohort.sent, cohort.weights_U.tolist(), strict=True)
    comparable = [(new, old, w) for new, old, w in pairs if new.rank == old.rank]
    found: dict[str, float] = {}
    for part in _FACTORS:
        if part not in parts:
            continue
        dim = axis.summed(part)
        magnitude = direction = share = 0.0
        for new, old, weight in comparable:
            moved = _moved(_factor(new, part), _factor(old, part), dim)
            if moved is not None:
                magnitude += weight * moved[0]
                direction += weight * moved[1]
                share += weight
        if share > 0:
            found[f"magnitude_change_{part.value}"] = magnitude / share
            found[f"direction_change_{part.value}"] = direction / share
    return found


def _factor(factors: LoraFactors, part: Part) -> Tensor:
    return factors.a_RK if part is Part.A else factors.b_DR


def _moved(new: Tensor, old: Tensor, dim: int) -> tuple[float, float] | None:
    """Mean changes of magnitude and direction; None without a vector to compare."""
    after, before = decompose(new, dim), decompose(old, dim)
    both_N = after.has_direction & before.has_direction
    if not both_N.any():
        return None
    longer_N = (after.magnitudes_N - before.magnitudes_N).abs()
    # 1 - v.v0 = |v - v0|^2 / 2 for unit vectors, without its cancellation.
    turned_N = (after.directions - before.directions).square().sum(dim=dim) / 2
    return float(longer_N[both_N].mean()), float(turned_N[both_N].mean())
