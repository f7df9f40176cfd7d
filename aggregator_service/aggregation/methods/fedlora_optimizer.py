"""FedLoRA-Optimizer: average lengths and directions apart, then one optimiser for each.

Paper   Zhao, Zhu, Zhang, Chen, Guo, "FedLoRA-Optimizer: Federated LoRA Fine-Tuning with Global and
        Local Optimization in Heterogeneous Data Scenarios", 2025, arXiv:2510.11274.
Rule    A = A_M A_D and B = B_M B_D, lengths and directions (`polar`);
        1. lengths and directions of both are averaged with w_u, mean directions renormalised;
        2. global optimiser: a worker with the server's data trains A's directions alone;
        3. local optimiser: every worker trains lengths of B of its own, which nobody else sees.
Bias    of 1 against T: the factor mean's, and that a mean length times a mean direction is not the
        mean vector: where directions disagree the mean vector is shorter. `distance_from_mean`
        measures it in every round.
Needs   one rank for the whole cohort. For 2 a worker of the role `server_data`; without one the
        stage is left out. For 3 workers that keep lengths from round to round.
Cost    4 R (D + K) flops per module, R = U r.

Why directions of A and lengths of B: in the paper's pilot the direction of A changes about 1.7
times as much between tasks as that of B, and the length of B about 41 times as much as that of A.
The same two figures are measured here in every round, against what the workers were given:
`direction_change_a`, `_b` = mean of 1 - cos, `length_change_a`, `_b` = mean of |m - m_0|.

Readings. The paper leaves the axis of its decomposition open, and the data and loss of its global
stage. `axis = rank` is our default; the others are in `polar`. A mean direction shorter than 0.1
says that the workers do not agree at all: the direction of the round before is kept. The server has
no forward pass, so stage 2 is a task for a worker; what comes back is A, of which only the
directions are taken. The personal lengths of stage 3 never cross the wire and are no part of where
a worker's next round begins, so that the upload is the same with the stage on and off
(test_fedlora_optimizer.py and test_polar.py hold these).

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import (
    About,
    Combination,
    MethodDefaults,
    ModuleCohort,
    Properties,
    Work,
    uniform_rank,
)
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.polar import Axis, Polar, axis_of_a, axis_of_b, polar
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import product_norm, weighted_sum
from fedlora.runs.plan import RoundPlan

__all__ = ["FedLoRAOptimizer", "refine_directions"]

_AGREED = 0.1
"""length of a mean of unit directions below which they do not agree on any"""

_AXES = {Axis.RANK: 0.0, Axis.ROW: 1.0, Axis.DORA: 2.0}
"""the axis as a number of a plan's settings"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedLoRAOptimizer(MethodDefaults):
    """Means of lengths and of directions; then a global and a local stage."""

    axis: Axis = Axis.RANK
    """rank: a length per component of A and of B; row: per row of each; dora: per column of each"""
    global_steps: int = 20
    """steps on A's directions of a worker with the server's data; 0 leaves the stage out"""
    global_learning_rate: float = 1e-4
    """of the global stage"""
    personal_epochs: float = 1.0
    """epochs on a worker's own lengths of B after each round; 0 leaves the stage out"""
    personal_learning_rate: float = 1e-3
    """of the personal stage"""

    name: ClassVar[str] = "fedlora_optimizer"
    about: ClassVar[About] = About(
        title="FedLoRA-Optimizer",
        paper="Zhao et al. 2025, arXiv:2510.11274",
        exactness="wrong by the covariance of the factors, and by where directions disagree",
        up="r(d+k)",
        down="r(d+k), and rk more after a global stage",
        cost="4R(d+k)",
        needs="one rank for the cohort; a server_data worker for the global stage",
        choose="one shared model and personal ones from it, with public data on the server",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=False,
        keeps_basis=True,
        mixed_ranks=False,
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        rates = (self.global_learning_rate, self.personal_learning_rate)
        counts = self.global_steps >= 0 and 0 <= self.personal_epochs < float("inf")
        if not counts or not all(0 < rate < float("inf") for rate in rates):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "fedlora_optimizer: expected global_steps >= 0, personal_epochs >= 0 and finite "
                f"learning rates > 0, got {self.global_steps}, {self.personal_epochs}, "
                f"{rates[0]} and {rates[1]}",
            )

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """A and B are trained and sent; then the two stages."""
        return (
            RoundPlan(
                refined=(Part.A,) if self.global_steps else (),
                personal_stage=self.personal_epochs > 0,
                settings={
                    "axis": _AXES[self.axis],
                    "global_steps": float(self.global_steps),
                    "global_learning_rate": self.global_learning_rate,
                    "personal_epochs": self.personal_epochs,
                    "personal_learning_rate": self.personal_learning_rate,
                },
            ),
        )

    def refined(self, combined: LoraFactors, trained: LoraFactors) -> LoraFactors:
        """The directions of the A that was trained, with the lengths that were published."""
        return refine_directions(combined, trained.a_RK, self.axis)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The means of lengths and of directions; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        start = cohort.start.factors.to(torch.float64) if cohort.start else None
        if start is not None and start.rank != cohort.largest_rank:
            start = None
        dim_a, dim_b = axis_of_a(self.axis), axis_of_b(self.axis)
        weights_U = cohort.weights_U
        a, measured_a = _mean(
            [f.a_RK for f in cohort.members], weights_U, dim_a, start.a_RK if start else None
        )
        b, measured_b = _mean(
            [f.b_DR for f in cohort.members], weights_U, dim_b, start.b_DR if start else None
        )
        factors = LoraFactors(a.matrix(), b.matrix())
        measurements = {f"{name}_a": value for name, value in measured_a.items()}
        measurements |= {f"{name}_b": value for name, value in measured_b.items()}
        mean = factor_mean(cohort.members, weights_U)
        measurements["distance_from_mean"] = _distance(factors, mean)
        return Combination(factors=factors, measurements=measurements)


def refine_directions(published: LoraFactors, refined_a_RK: Tensor, axis: Axis) -> LoraFactors:
    """The published adapter with the directions of another A.

    Lengths of A, and B, stay; where the other A has no direction the published one stays too.
    """
    dim = axis_of_a(axis)
    before, after = polar(published.a_RK, dim), polar(refined_a_RK.to(published.dtype), dim)
    found = after.directions.any(dim=dim, keepdim=True)
    directions = torch.where(found, after.directions, before.directions)
    return LoraFactors(Polar(before.lengths, directions).matrix(), published.b_DR)


def _mean(
    matrices: Sequence[Tensor], weights_U: Tensor, dim: int, start: Tensor | None
) -> tuple[Polar, dict[str, float]]:
    """Mean length and mean direction of every vector, and how far the workers moved them."""
    parts = [polar(matrix.to(torch.float64), dim) for matrix in matrices]
    lengths = weighted_sum([p.lengths for p in parts], weights_U)
    mean = polar(weighted_sum([p.directions for p in parts], weights_U), dim)
    agreed = mean.lengths >= _AGREED
    directions, measured = mean.directions, {"kept_directions": 0.0}
    if start is not None:
        before = polar(start, dim)
        had = before.directions.any(dim=dim, keepdim=True)
        directions = torch.where(agreed | ~had, directions, before.directions)
        measured["kept_directions"] = float((~agreed & had).sum())
        measured |= _moved(parts, weights_U, dim, before, had)
    return Polar(lengths, directions), measured


def _moved(
    parts: Sequence[Polar], weights_U: Tensor, dim: int, before: Polar, had: Tensor
) -> dict[str, float]:
    """Sensitivities over the vectors that had a direction; none where there was no such vector."""
    if not bool(had.any()):
        return {}
    lengths = [(p.lengths - before.lengths).abs()[had].mean() for p in parts]
    cosines = [(p.directions * before.directions).sum(dim=dim, keepdim=True) for p in parts]
    turned = [1 - c[had].mean() for c in cosines]
    weights = weights_U.tolist()
    return {
        "length_change": sum(w * float(x) for w, x in zip(weights, lengths, strict=True)),
        "direction_change": sum(w * float(x) for w, x in zip(weights, turned, strict=True)),
    }


def _distance(factors: LoraFactors, mean: LoraFactors) -> float:
    """|B A - B~ A~| / |B~ A~|."""
    apart = product_norm(
        torch.cat([factors.b_DR, -mean.b_DR], dim=1), torch.cat([factors.a_RK, mean.a_RK])
    )
    whole = product_norm(mean.b_DR, mean.a_RK)
    return apart / whole if whole > 0 else 0.0
