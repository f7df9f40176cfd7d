"""FedHL: add each client's increment to a full-rank delta that only the server holds.

Paper   Peng, Zeng, Li, Li, Chen, Wang, "FedHL: Federated Learning for Heterogeneous Low-Rank
        Adaptation via Unbiased Aggregation", 2025, arXiv:2505.18494.
Rule    D_{t+1} = D_t + sum_u p_u (B'_u A'_u - B_u A_u), with (A_u, B_u) what client u was given,
        the best adapter of rank r_u to D_t, and (A'_u, B'_u) what it sent; published is the best
        adapter of the run's rank to D_{t+1}.
Bias    none in D against averaging the increments: a client that hands back what it was given
        changes nothing, where averaging truncated products would lose sum_u p_u (D - D^{r_u}).
        What is published, and what a client begins from, is D truncated.
Needs   any mix of ranks. The adapter that the round began from, and the method's own state: D
        cannot be read back from what was published.
Cost    about 4 S^2 (D + K) + 20 S^3 flops per module (QR core), S = R' + 2R, R' the rank of D and R
        the sum of ranks; R' (D + K + 1) float64 numbers of state. No D x K matrix.

Readings. We have the paper's equations at second hand. W_t is read as the delta D_t, not W0 + D_t:
clients hold W0 untruncated, and the truncation error of W0 would drown D's. D_0 is the product of
the adapter that the run began from, which is zero for the usual B = 0; where that is not known, as
for a cohort of files, it is zero too, and the first round averages products. What is subtracted
is what the client was given, rounding included, so that no rounding error is learnt. D is kept as
factors, recompressed to its numerical rank in every round; `max_rank` cuts it further. Weights:
`weighting.truncation_error`. A client that claims a high rank and hands back a huge increment would
count in full: the plug-in `norm_bound` cuts changes, by the norm of the numbers sent and not of the
increment's product, here as everywhere (test_change_norms.py). test_fedhl.py holds the others.

Convergence. The paper claims O(1/sqrt(t)). We see it where one rank reaches rank(D) and clients
have the same data. Elsewhere clients are at rest, or in balance, at their truncated starts while
the gradient at D is not zero: on convex quadratics it stays at a plateau, however long they run.
With every rank below the optimum's that is what the best adapter of the largest rank lacks; with
different data 0.45 of the first gradient, and 0.6 under `power` (test_fedhl_convergence.py).

Measured: `delta_rank`, the rank of D; `delta_truncation_error`, what `max_rank` has cut off; and,
for the whole adapter, `truncation_error_rank_4`, what the copies of rank 4 lack (likewise for every
rank), `start_bias` |sum_u p_u (D - D_u)|, D_u what client u was given, `drift_bound`
sqrt(U sum_u p_u^2 |D - D_u|^2) and `drift_bound_at_data_weights`; all of them relative to |D|.

Shape suffixes: N kept components of D, R rank, K in_features, D out_features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.truncate import Truncate
from aggregator_service.aggregation.geometry import increment
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.weighting.truncation_error import (
    VALUES,
    Form,
    TruncationError,
)
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import ProductSVD, qr_core_svd

__all__ = ["FedHL"]

_DELTA_A, _DELTA_B = "delta_a", "delta_b"


@dataclass(frozen=True, slots=True, kw_only=True)
class FedHL(MethodDefaults):
    """Increments, added to the server's full-rank delta."""

    form: Form = Form.DATA_AWARE
    """weights. data_aware: truncation errors against the distance from the data weights; power:
    inverse power of the truncation error; data: the data weights"""
    power: int = 1
    """for power: 1 for the inverse squared error, 2 for its square, as the paper's Eq. 8 reads"""
    eps_rel: float = 1e-2
    """for power: errors below this share of the mean error count as equally small"""
    data_pull: float = 1.0
    """for data_aware: weight of the distance from the data weights, relative to the mean error"""
    max_rank: int = 0
    """cap on the rank of the server's delta; 0 for none but min(d, k)"""

    name: ClassVar[str] = "fedhl"
    stacks: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="FedHL",
        paper="Peng et al. 2025, arXiv:2505.18494",
        exactness="increments are exact; what is published is truncated",
        cost="4S^2(d+k) + 20S^3, S = rank of the delta + 2R",
        needs="the version before, and its own state",
        choose="clients of different ranks, and nothing learnt may be lost by truncation",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=False,
        keeps_basis=False,
        mixed_ranks=True,
        gauge_free=True,
        strongest_first=True,
        keeps_total=True,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Truncate] = Truncate()

    def __post_init__(self) -> None:
        self._truncation_error()
        if self.max_rank < 0:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"fedhl: expected max_rank >= 0 (0 for no cap), got {self.max_rank}",
            )

    @property
    def weighting(self) -> TruncationError:
        """By the truncation error of what each client was given."""
        return self._truncation_error()

    def target(self, cohort: ModuleCohort) -> LoraFactors:
        """D_{t+1} as one product of rank R' + 2R."""
        delta = _delta(cohort)
        if cohort.sent is None:
            return cohort.stack()
        steps = [increment(f, g) for f, g in zip(cohort.members, cohort.sent, strict=True)]
        weighted = [step.b_DR * p for step, p in zip(steps, cohort.weights_U.tolist(), strict=True)]
        return LoraFactors(
            torch.cat([*(f.a_RK for f in delta), *(step.a_RK for step in steps)]),
            torch.cat([*(f.b_DR for f in delta), *weighted], dim=1),
        )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:  # noqa: ARG002
        """D_{t+1}, whole; see `base.Method`.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD where the start of the round is needed and not known,
                and after a change of the base model.
        """
        whole = self.target(cohort)
        most = min(whole.out_features, whole.in_features)
        cap = min(self.max_rank or most, most)
        svd = qr_core_svd([whole.b_DR], [whole.a_RK], rank=cap)
        delta, total = _balanced(svd, whole), svd.tail_norm(0)
        return Combination(
            factors=delta,
            state={
                _DELTA_A: delta.a_RK,
                _DELTA_B: delta.b_DR,
                VALUES: svd.values_N[: delta.rank].clone(),
            },
            measurements={
                "delta_rank": float(svd.rank),
                "delta_truncation_error": svd.tail_norm(cap) / total if total > 0 else 0.0,
            },
        )

    def _truncation_error(self) -> TruncationError:
        """The rule, which checks its own options."""
        return TruncationError(
            form=self.form, power=self.power, eps_rel=self.eps_rel, data_pull=self.data_pull
        )


def _delta(cohort: ModuleCohort) -> list[LoraFactors]:
    """D_t, in float64; none where it is zero for not being known."""
    if cohort.start is not None and cohort.start.base is not None:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            "fedhl publishes all that was learnt as one adapter and keeps what truncation loses "
            "itself; the base model has been changed as well",
            hint="Use fedhl with compression truncate or energy, or begin from a version that "
            "leaves the base model alone",
        )
    if not cohort.state:
        return [] if cohort.start is None else [cohort.start.factors.to(torch.float64)]
    if cohort.sent is None:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            "fedhl goes on from its state and needs to know what the clients were given, to "
            "subtract it; got a state without the adapter that the round began from",
            hint="Name the version that the updates were trained from, or leave the state out",
        )
    device = cohort.members[0].a_RK.device
    return [LoraFactors(cohort.state[_DELTA_A].to(device), cohort.state[_DELTA_B].to(device))]


def _balanced(svd: ProductSVD, like: LoraFactors) -> LoraFactors:
    """U S^1/2 and S^1/2 V^T, sorted; one component of zeros for a delta of nothing."""
    if svd.rank == 0:
        return LoraFactors(torch.zeros_like(like.a_RK[:1]), torch.zeros_like(like.b_DR[:, :1]))
    root_N = svd.values_N[: svd.rank].sqrt()
    return LoraFactors(root_N[:, None] * svd.right_QK, svd.left_DQ * root_N)
