"""FLoRA-NA: one scalar per client and factor, chosen so that the product is nearly right.

Paper   L.-T. Nguyen, M.-D. Nguyen, Jeong, Le, Pham, "Communication-Efficient and Accurate
        Approach for Aggregation in Federated Low-Rank Adaptation", 2025, arXiv:2509.26399, Eq. 6.
Rule    B = sum_u p_u B_u,  A = sum_u q_u A_u,  with (p, q) per module minimising
        J(p, q) = |B A - sum_u w_u B_u A_u|_F^2.
Bias    not exact: 2U - 1 numbers cannot represent a mean of rank up to U r. Undoes differences
        of scale between clients, little of ordinary drift; never worse than `fedit`, never
        better than `optimal`.
Needs   nothing but the factors. Mixed ranks: lower ranks are padded with zero components.
Cost    R^2 (D + K) flops for the Gram matrices, then O(R^2 + U^3) per half-step, R = U r.

Readings. The paper gives equal weights 1/U: w_u = n_u / N here. It does not say how Eq. 6 is
solved: alternating least squares on Gram matrices (`scalar_als`), each half-step exact, from
several starts: the factor mean p = q = w, the best multiple of a single client, and seeded
random pairs. The best one is kept (test_flora_na.py holds each of these readings).

Never worse than `fedit` is decided on what is published: both surrogates are scaled, rounded
and read back, and the factor mean is kept unless the other has the smaller error.

A small J can mean that one client's update is being published: see `concentration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import (
    ModuleResult,
    Publication,
    active_cohort,
    uniform_rank,
)
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.fedit import factor_mean
from aggregator_service.aggregation.gauge import filled
from aggregator_service.aggregation.scalar_als import (
    ScalarProblem,
    ScalarSolution,
    concentration,
)
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import weighted_sum

__all__ = ["FLoRANA"]

_MEANINGFUL = 1e-6
"""share of J by which one solution must beat another to be called better"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FLoRANA:
    """Scalar surrogate of the mean product."""

    max_sweeps: int = 200
    """pairs of half-steps from each start"""
    tolerance: float = 1e-8
    """a start is done when a sweep lowers the objective by less than this share of it"""
    random_starts: int = 2
    """random starts beside the factor mean and the best single client"""
    ridge: float = 1e-8
    """weight of the proximal term, relative to the diagonal of the normal equations"""
    max_concentration: float = 1.0
    """largest share that one client may have in the product's coefficients; a solution above it
    is dropped, and the factor mean is kept where none is left"""

    name: ClassVar[str] = "flora_na"
    mixed_ranks: ClassVar[bool] = True
    keeps_basis: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.max_sweeps < 1 or self.random_starts < 0 or not self.ridge > 0:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "flora_na needs max_sweeps >= 1, random_starts >= 0 and ridge > 0, got "
                f"{self.max_sweeps}, {self.random_starts} and {self.ridge}",
            )
        if not self.tolerance >= 0 or not 0 < self.max_concentration <= 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "flora_na needs tolerance >= 0 and max_concentration in (0, 1], got "
                f"{self.tolerance} and {self.max_concentration}",
            )

    def aggregate_module(
        self,
        cohort: Sequence[LoraFactors],
        weights_U: Tensor,
        *,
        rank: int,
        generator: torch.Generator | None = None,
        publication: Publication | None = None,
    ) -> ModuleResult:
        """The best scalar surrogate found; see `base.Aggregator`."""
        members, weights_U = active_cohort(cohort, weights_U)
        common = uniform_rank(self.name, members, rank, mixed=self.mixed_ranks)
        generator = generator or torch.Generator()
        publication = publication or Publication(dtype=members[0].dtype)
        centred = CentredCohort.of(members, weights_U)
        problem = ScalarProblem(centred, ridge=self.ridge)
        winner, best = self._best(problem, weights_U, generator)

        mean = factor_mean(members, weights_U)
        padded = [f.padded(common) for f in members]
        surrogate = LoraFactors(
            weighted_sum([f.a_RK for f in padded], best.q_U),
            weighted_sum([f.b_DR for f in padded], best.p_U),
        )
        excess = centred.excess_of(publication.read_back(surrogate))
        # Not below: also where they are equal, or not numbers.
        keep_mean = not excess < centred.excess_of(publication.read_back(mean))
        p_U, q_U = (weights_U, weights_U) if keep_mean else (best.p_U, best.q_U)
        result = (mean if keep_mean else surrogate).to(members[0].dtype)
        return ModuleResult(
            factors=filled(result, rank, generator),
            measurements={
                "starts": float(2 + self.random_starts),
                "winning_start": float(winner),
                "sweeps": float(best.sweeps),
                "concentration": concentration(p_U, q_U),
                "kept_factor_mean": float(keep_mean),
            },
        )

    def _best(
        self, problem: ScalarProblem, weights_U: Tensor, generator: torch.Generator
    ) -> tuple[int, ScalarSolution]:
        """The start that led lowest, 0 for the factor mean, and its solution."""
        solutions = problem.solve(
            problem.starts(self.random_starts, generator),
            max_sweeps=self.max_sweeps,
            tolerance=self.tolerance,
        )
        winner = 0
        best = ScalarSolution(weights_U, weights_U, problem.objective_at_mean, 0)
        for i, solution in enumerate(solutions):
            if concentration(solution.p_U, solution.q_U) > self.max_concentration:
                continue
            # Starts that meet in one point differ by rounding: the first, nearest the mean, wins.
            if solution.objective < best.objective * (1 - _MEANINGFUL):
                winner, best = i, solution
        return winner, best
