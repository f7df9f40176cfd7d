"""HetLoRA: pad with zeros, weigh by norm, and let workers prune their rank.

Paper   Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device
        Foundation Models", EMNLP 2024, arXiv:2401.06432.
Rule    server: A = sum_u w_u pad(A_u),  B = sum_u w_u pad(B_u),  w_u = |dW_u| / sum_v |dW_v|;
        a worker of rank r is sent the first r components.
        worker: adds `tail_penalty` |B[:, g r:]| |A[g r:]|, g = `tail_fraction`, to its loss; where
        that product came out smaller than it began, it goes on with floor(g r) components, not
        fewer than `min_rank`.
Bias    the factor mean's, and what padding dilutes: a component that few workers own is divided
        by the weight of all (`replication` does not).
Needs   workers that may lower their own rank.
Cost    2 R (D + K) flops per module, R = U r_max, and a pass for the norms.

Readings. The norm is of the whole model's product (`weighting.update_norm`); `cap` limits what one
worker can weigh, and is ours. Pruning assumes that components are in the order of their importance,
which only the tail penalty sees to. A component of the global adapter that no update of the round
reaches is left as it was: padding it with zeros as well would erase what earlier, larger workers
have learnt (test_hetlora.py holds these). Defaults are those of public code; the paper tunes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.factor_means import factor_mean, unreached_kept
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from aggregator_service.aggregation.weighting.update_norm import UpdateNorm
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan

__all__ = ["HetLoRA"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HetLoRA(MethodDefaults):
    """Zero-padded factor mean with norm weights."""

    cap: float = 1.0
    """largest weight of one update; 1 for none"""
    tail_fraction: float = 0.99
    """g: the components beyond this share of a worker's rank are its tail"""
    tail_penalty: float = 1e-3
    """weight of the tail's norm in a worker's loss; 0 for none"""
    min_rank: int = 4
    """a worker never goes below it"""

    name: ClassVar[str] = "hetlora"
    about: ClassVar[About] = About(
        title="HetLoRA",
        paper="Cho et al. 2024, arXiv:2401.06432",
        exactness="wrong by the covariance of the factors, and by what padding dilutes",
        cost="2R(d+k), and a pass for the norms",
        needs="workers that may lower their rank",
        choose="the baseline for clients of different ranks",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=True,
        keeps_basis=True,
        mixed_ranks=True,
    )
    compression: ClassVar[Keep] = Keep()

    def __post_init__(self) -> None:
        UpdateNorm(cap=self.cap)
        fraction = 0 < self.tail_fraction <= 1
        if not fraction or not 0 <= self.tail_penalty < float("inf") or self.min_rank < 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "hetlora: expected tail_fraction in (0, 1], a finite tail_penalty >= 0 and "
                f"min_rank >= 1, got {self.tail_fraction}, {self.tail_penalty} and "
                f"{self.min_rank}",
            )

    @property
    def weighting(self) -> UpdateNorm:
        """By the norm of each update's product."""
        return UpdateNorm(cap=self.cap)

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """A and B are trained and sent, perhaps at a lower rank than they were given."""
        settings = {
            "tail_fraction": self.tail_fraction,
            "tail_penalty": self.tail_penalty,
            "min_rank": float(self.min_rank),
        }
        return (RoundPlan(may_lower_rank=True, settings=settings),)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The padded means of the factors; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        mean = factor_mean(cohort.members, cohort.weights_U)
        return Combination(factors=unreached_kept(mean, cohort, work.rank))
