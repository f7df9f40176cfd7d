"""FedLoRA-Optimizer: average magnitudes and directions apart, then train each where it belongs.

Paper   Zhao, Zhu, Zhang, Chen, Guo, "FedLoRA-Optimizer: Federated LoRA Fine-Tuning with Global and
        Local Optimization in Heterogeneous Data Scenarios", 2025, arXiv:2510.11274.
Rule    A_u = a_u A_D,u and B_u = b_u B_D,u, magnitudes and directions (`polar`);
        a = sum_u w_u a_u,  A_D = sum_u w_u A_D,u at length 1, likewise b and B_D;
        global stage: A_D is trained and nothing else, by a worker with the server's data, or by
        the cohort in a round of its own: A_D = sum_u w_u A_D,u at length 1;
        local stage: every worker trains its own b, which it keeps.
Bias    not the mean of products, and not the mean of the factors either: where directions differ,
        lengths are not shortened as they are in a mean. `factor_mean_distance` says by how much.
        Exact for one client, and for clients that are equal.
Needs   one rank for the whole cohort. The global stage needs a worker with the role `server_data`;
        without one it is left out, unless it is federated.
Cost    4 R (D + K) flops per module, R = U r; a federated global stage 4 R K, and r K numbers up.

Readings. What we have of the paper is the split, that its components are averaged, that the global
stage trains A's directions and the local one B's magnitudes, and their order, global first. Its
axis, losses, steps and learning rates are not known to us. Ours, each held by a test in
test_fedlora_optimizer.py or test_polar.py:
    - `axis` has three meanings of magnitude; `rank`, one per component, is the default;
    - a mean direction of length below 0.1 is no agreement, and the version before keeps its own;
    - a worker without a direction somewhere (B's column still zero) is left out of the mean there;
    - after the global stage A has the refinement's directions at the published magnitudes, whatever
      lengths the refinement came back with; B is as it was;
    - a federated global stage is every second round, with the cohort's own data;
    - every worker begins from the published pair and sends all of it; the private b_u are trained
      after the round and never sent, so that no later round starts from them;
    - `order = parallel`, its ablation, leaves the published adapter as it is: only the local stage
      begins elsewhere, from the version before the refinement;
    - a stage of 0 steps is left out, and without both this is the averaging of components alone.

How far A's directions and B's magnitudes move, which the paper reports to be most of what happens,
is measured in every round of every method (`sensitivity`), here along this method's `axis`.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from aggregator_service.aggregation.polar import Axis, Polar, decompose, mean_polar, recompose
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import product_norm
from fedlora.runs.plan import RoundPlan, plan_for

__all__ = ["FedLoRAOptimizer", "GlobalStage", "Order", "refine_directions"]


class GlobalStage(enum.StrEnum):
    """Who trains A's directions."""

    SERVER_DATA = "server_data"
    FEDERATED = "federated"


class Order(enum.StrEnum):
    """Whether the two stages follow one another."""

    PIPELINE = "pipeline"
    PARALLEL = "parallel"


@dataclass(frozen=True, slots=True, kw_only=True)
class FedLoRAOptimizer(MethodDefaults):
    """Components averaged apart; a global stage for A's directions, a local one for b."""

    axis: Axis = Axis.RANK
    """what a magnitude belongs to. rank: a component; row: rows of A and of B; dora: columns"""
    global_stage: GlobalStage = GlobalStage.SERVER_DATA
    """who trains A's directions. server_data: a worker with the server's data, after every round;
    federated: the cohort, in every second round"""
    refine_steps: int = 20
    """steps of the global stage, on A's directions; 0 for none"""
    refine_learning_rate: float = 1e-4
    """learning rate of the global stage"""
    personal_epochs: int = 1
    """epochs of the local stage, on a worker's own magnitudes of B; 0 for none"""
    personal_learning_rate: float = 1e-3
    """learning rate of the local stage"""
    order: Order = Order.PIPELINE
    """pipeline: the local stage begins from what the global one made; parallel: both begin from
    the round's aggregation, and workers fetch a version more"""

    name: ClassVar[str] = "fedlora_optimizer"
    about: ClassVar[About] = About(
        title="FedLoRA-Optimizer",
        paper="Zhao et al. 2025, arXiv:2510.11274",
        exactness="neither the mean of products nor of factors: lengths and directions apart",
        cost="4R(d+k)",
        needs="one rank for the cohort; a server_data worker for a global stage of its own data",
        choose="shared knowledge and a personal model for every worker",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=False,
        keeps_basis=True,
        mixed_ranks=False,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        for name, count in (
            ("refine_steps", self.refine_steps),
            ("personal_epochs", self.personal_epochs),
        ):
            if count < 0:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    f"fedlora_optimizer: expected {name} >= 0 (0 leaves the stage out), "
                    f"got {count}",
                )
        for name, rate in (
            ("refine_learning_rate", self.refine_learning_rate),
            ("personal_learning_rate", self.personal_learning_rate),
        ):
            if not (math.isfinite(rate) and rate > 0):
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    f"fedlora_optimizer: expected a finite {name} above 0, got {rate}",
                    hint="0 steps or epochs leave a stage out",
                )
        if self.order is Order.PARALLEL and self.global_stage is GlobalStage.FEDERATED:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "fedlora_optimizer: order = parallel is about a stage after a round, and with "
                "global_stage = federated it is a round of its own",
                hint="Set global_stage = server_data, or order = pipeline",
            )

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """A and B are trained and sent; then the two stages."""
        settings: dict[str, float] = {"axis": self.axis.code}
        if self.personal_epochs:
            settings |= {
                "personal_epochs": self.personal_epochs,
                "personal_learning_rate": self.personal_learning_rate,
            }
        plain = RoundPlan(
            personal_stage=self.personal_epochs > 0,
            personal_unrefined=self.order is Order.PARALLEL,
            settings=settings,
        )
        if not self.refine_steps:
            return (plain,)
        settings = settings | {
            "refine_steps": self.refine_steps,
            "refine_learning_rate": self.refine_learning_rate,
        }
        if self.global_stage is GlobalStage.SERVER_DATA:
            return (replace(plain, refined=(Part.A,), settings=settings),)
        directions = replace(
            plain,
            trained=(Part.A,),
            published=(Part.A,),
            settings=settings | {"directions_alone": 1.0},
        )
        return plain, directions

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """Both factors of averaged components, or A's directions alone; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        if Part.B not in plan_for(self.plans, cohort.round).trained:
            return Combination(factors=self._turned(cohort))
        made: dict[Side, Tensor] = {}
        start = cohort.start_at_rank
        for side in Side:
            dim = self.axis.summed(side)
            members = [decompose(_factor(f, side), dim) for f in cohort.members]
            before = decompose(_factor(start, side), dim) if start else None
            made[side] = recompose(mean_polar(members, cohort.weights_U, before))
        factors = LoraFactors(made[Side.A], made[Side.B])
        mean = factor_mean(cohort.members, cohort.weights_U)
        size = product_norm(mean.b_DR, mean.a_RK)
        measured = {"factor_mean_distance": _distance(factors, mean) / size} if size > 0 else {}
        return Combination(factors=factors, measurements=measured)

    def _turned(self, cohort: ModuleCohort) -> LoraFactors:
        """The version before, with the mean of the directions of A that came back."""
        # Without it the updates would have no B.
        assert cohort.start is not None  # noqa: S101
        before = cohort.start.factors
        dim = self.axis.summed(Side.A)
        members = [decompose(f.a_RK, dim) for f in cohort.members]
        mean = mean_polar(members, cohort.weights_U, decompose(before.a_RK, dim))
        return refine_directions(before.to(torch.float64), recompose(mean), self.axis)

    def refined(self, combined: LoraFactors, trained: LoraFactors) -> LoraFactors:
        """A's trained directions at the published magnitudes; see `base.Method`."""
        return refine_directions(combined, trained.a_RK, self.axis)


def refine_directions(published: LoraFactors, refined_a_RK: Tensor, axis: Axis) -> LoraFactors:
    """The published adapter with the directions of a refined A; float64 in A.

    Magnitudes stay, and so does a vector of A that lost its direction in the refinement, or never
    had one.
    """
    dim = axis.summed(Side.A)
    before, after = decompose(published.a_RK, dim), decompose(refined_a_RK, dim)
    turned = recompose(
        Polar(magnitudes_N=before.magnitudes_N, directions=after.directions, dim=dim)
    )
    turns_N = (before.has_direction & after.has_direction).unsqueeze(dim)
    a_RK = torch.where(turns_N, turned, published.a_RK.to(torch.float64))
    return LoraFactors(a_RK.to(published.dtype), published.b_DR)


def _factor(factors: LoraFactors, side: Side) -> Tensor:
    return factors.a_RK if side is Side.A else factors.b_DR


def _distance(factors: LoraFactors, other: LoraFactors) -> float:
    """|B A - B' A'|_F, from the factors' differences: B A - B' A' = (B - B') A + B' (A - A')."""
    return product_norm(
        torch.cat([factors.b_DR - other.b_DR, other.b_DR], dim=1),
        torch.cat([factors.a_RK, factors.a_RK - other.a_RK]),
    )
