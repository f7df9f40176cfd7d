"""The family of surrogates: adapters of the clients' rank made of the clients' factors.

    B = sum_u B_u P_u,   A = sum_u Q_u A_u,   near T = sum_u w_u B_u A_u

    member        P_u, Q_u                      undoes
    factor mean   w_u I                         nothing
    scalar        p_u I,      q_u I             differences of scale between clients
    diagonal      diag(p_u),  diag(q_u)         differences of scale between components
    optimal       any matrices                  any choice of basis; Eckart and Young's optimum

Before rounding each is at least as near to T as the one above it: its coefficients include
the other's, and it is solved starting from there. What is published is rounded, and rounding can
be larger than the difference between two members, so `nearest` compares what readers will get.

The optimum is found directly, from the singular value decomposition of T, in the gauge whose A
is closest to the factor mean's: in that gauge its components are the clients' components too.

Shape suffixes: U clients, R rank, K in_features, D out_features.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.client_grams import ClientGrams
from aggregator_service.aggregation.coefficients import concentration
from aggregator_service.aggregation.diagonal_als import DiagonalProblem
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.gauge import closest_a
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.scalar_als import ScalarProblem, ScalarSolution
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import qr_core_svd, weighted_sum

__all__ = ["Componentwise", "Member", "Solver", "Surrogate", "SurrogateFamily", "nearest"]

_MEANINGFUL = 1e-6
"""share of J by which one solution must beat another to be called better"""


class Member(enum.IntEnum):
    """The members, from the cheapest to the nearest; also what `member` measures."""

    FACTOR_MEAN = 0
    SCALAR = 1
    DIAGONAL = 2
    OPTIMAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Solver:
    """How far alternating least squares goes; the options of `flora_na` say what they mean."""

    max_sweeps: int = 200
    tolerance: float = 1e-8
    random_starts: int = 2
    ridge: float = 1e-8
    max_concentration: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """One member for one cohort."""

    member: Member
    factors: LoraFactors
    """float64, of the cohort's largest rank; the optimum has a lower one where T has"""
    measurements: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Componentwise(Surrogate):
    """A member of one number per client, component and factor."""

    p_RU: Tensor
    q_RU: Tensor
    gain: float = 0.0
    """J of the factor mean above this one's, before rounding, where the solver has told"""

    def coefficients(self, names: Sequence[str]) -> dict[str, float]:
        """P and Q by worker, and by component where they differ; workers by number without names.

        Of factors with the scale folded in: p belongs to s_u lora_B_u.
        """
        count = self.p_RU.shape[1]
        called = names or [str(u + 1) for u in range(count)]
        found: dict[str, float] = {}
        for letter, c_RU in (("p", self.p_RU), ("q", self.q_RU)):
            for name, c_R in zip(called, c_RU.T.tolist(), strict=True):
                if self.member is Member.DIAGONAL:
                    found |= {f"{letter}[{name},{i}]": c for i, c in enumerate(c_R, start=1)}
                else:
                    found[f"{letter}[{name}]"] = c_R[0]
        return found


class SurrogateFamily:
    """The members for one cohort, each made when it is asked for.

    Args:
        cohort: the updates; lower ranks are padded with zero components.
        solver: of the scalar and diagonal members.
    """

    def __init__(self, cohort: ModuleCohort, solver: Solver) -> None:
        self._cohort = cohort
        self._solver = solver
        self._rank = cohort.largest_rank
        self._padded = [f.padded(self._rank) for f in cohort.members]

    @functools.cached_property
    def centred(self) -> CentredCohort:
        """The cohort in coordinates near its mean."""
        return CentredCohort.of(self._cohort.members, self._cohort.weights_U)

    @functools.cached_property
    def _mean(self) -> LoraFactors:
        return factor_mean(self._cohort.members, self._cohort.weights_U)

    @functools.cached_property
    def _problem(self) -> ScalarProblem:
        cohort, grams = self._cohort, self._cohort.grams
        if grams is None or grams.rank != self._rank:
            start = cohort.start.factors if cohort.start else self._padded[0]
            near = start if start.rank == self._rank else self._padded[0]
            grams = ClientGrams.near(cohort.members, near)
        left, right = grams.centred(cohort.weights_U)
        return ScalarProblem(left, right, cohort.weights_U, ridge=self._solver.ridge)

    def factor_mean(self) -> Componentwise:
        """The member p = q = w."""
        weights_U = self._cohort.weights_U
        return self._surrogate(Member.FACTOR_MEAN, self._mean, weights_U, weights_U, {})

    def scalar(self, generator: torch.Generator) -> Componentwise:
        """The best of several starts, of those that no client dominates too much."""
        problem = self._problem
        solutions = problem.solve(
            problem.starts(self._solver.random_starts, generator),
            max_sweeps=self._solver.max_sweeps,
            tolerance=self._solver.tolerance,
        )
        weights_U = self._cohort.weights_U
        winner, least, gain = 0, problem.objective_at_mean, 0.0
        best = ScalarSolution(weights_U, weights_U, least, 0)
        # Not the solver's own objective: far from the mean that is noise where drift is tiny.
        excess = problem.excess(solutions).tolist()
        for i, found in enumerate(solutions):
            if self._is_concentrated(found.p_U, found.q_U):
                continue
            reached = max(0.0, problem.objective_at_mean + excess[i])
            # Starts that meet in one point differ by rounding: the first, nearest the mean, wins.
            if reached < least * (1 - _MEANINGFUL):
                winner, least, best, gain = i, reached, found, -excess[i]
        measurements = {
            "starts": float(len(solutions)),
            "winning_start": float(winner),
            "sweeps": float(best.sweeps),
        }
        return replace(self._of_scalars(best, measurements), gain=gain)

    def of_scalars(
        self, found: ScalarSolution, measurements: Mapping[str, float], *, instead: Componentwise
    ) -> Componentwise:
        """The member of scalars that were found in another norm.

        Args:
            found: the scalars.
            measurements: what was measured on the way.
            instead: what to take where one client would dominate.
        """
        if self._is_concentrated(found.p_U, found.q_U):
            return replace(instead, measurements={**instead.measurements, **measurements})
        return self._of_scalars(found, measurements)

    def is_clear(self, scalar: Componentwise, publication: Publication) -> bool:
        """Whether no rounding can bring the factor mean nearer to T than the scalar member.

        Rounding numbers to a unit u moves a product by 2 u sum |b| |a| over its components at
        most. Where that cannot close the gap, nobody has to round and read back.
        """
        if publication.dtype is torch.float16:
            # Small numbers lose more than their share.
            return False
        unit = torch.finfo(publication.dtype).eps
        b, a = scalar.factors.b_DR, scalar.factors.a_RK
        size = float((b.norm(dim=0) * a.norm(dim=1)).sum())
        error = max(0.0, self._problem.objective_at_mean - scalar.gain) ** 0.5
        of_mean = self._problem.objective_at_mean**0.5
        return bool(error + unit * size < of_mean - unit * self._problem.size_of_mean)

    def diagonal(self, start: Componentwise) -> Componentwise:
        """Further down from the scalar member; that one itself where one client would dominate."""
        found = DiagonalProblem(self.centred, ridge=self._solver.ridge).solve(
            start.p_RU,
            start.q_RU,
            max_sweeps=self._solver.max_sweeps,
            tolerance=self._solver.tolerance,
        )
        if self._is_concentrated(found.p_RU, found.q_RU):
            return start
        factors = LoraFactors(torch.zeros_like(self._mean.a_RK), torch.zeros_like(self._mean.b_DR))
        p_RU, q_RU = (c.to(factors.a_RK.device) for c in (found.p_RU, found.q_RU))
        for u, f in enumerate(self._padded):
            factors.a_RK.add_(q_RU[:, u, None] * f.a_RK)
            factors.b_DR.add_(p_RU[:, u] * f.b_DR)
        return self._surrogate(
            Member.DIAGONAL,
            factors,
            found.p_RU,
            found.q_RU,
            {**start.measurements, "diagonal_sweeps": float(found.sweeps)},
        )

    def optimal(self) -> Surrogate:
        """T truncated to the cohort's rank, with A closest to the factor mean's."""
        stack = self._cohort.stack()
        svd = qr_core_svd([stack.b_DR], [stack.a_RK], rank=self._rank)
        if svd.rank == 0:
            near = LoraFactors(self._mean.a_RK, torch.zeros_like(self._mean.b_DR))
        else:
            near = closest_a(svd, self._mean)
        measurements = {"kept_rank": float(svd.rank)}
        return Surrogate(member=Member.OPTIMAL, factors=near, measurements=measurements)

    def _of_scalars(
        self, found: ScalarSolution, measurements: Mapping[str, float]
    ) -> Componentwise:
        factors = self._scaled(found)
        return self._surrogate(Member.SCALAR, factors, found.p_U, found.q_U, measurements)

    def _scaled(self, found: ScalarSolution) -> LoraFactors:
        """The clients' factors, each times its scalar, summed."""
        return LoraFactors(
            weighted_sum([f.a_RK for f in self._padded], found.q_U),
            weighted_sum([f.b_DR for f in self._padded], found.p_U),
        )

    def _surrogate(
        self,
        member: Member,
        factors: LoraFactors,
        p_U: Tensor,
        q_U: Tensor,
        measurements: Mapping[str, float],
    ) -> Componentwise:
        return Componentwise(
            member=member,
            factors=factors,
            p_RU=p_U.expand(self._rank, -1),
            q_RU=q_U.expand(self._rank, -1),
            measurements={**measurements, "concentration": concentration(p_U, q_U)},
        )

    def _is_concentrated(self, p_U: Tensor, q_U: Tensor) -> bool:
        return concentration(p_U, q_U) > self._solver.max_concentration


def nearest(
    candidates: Sequence[Surrogate],
    publication: Publication,
    distance: Callable[[LoraFactors], float],
) -> Surrogate:
    """The candidate of least distance once scaled, rounded and read back; the first of equals.

    Args:
        candidates: the first of the cohort's rank.
        publication: how the result will be stored.
        distance: from T, of factors of the cohort's rank.
    """
    rank = candidates[0].factors.rank
    gaps = [distance(publication.read_back(c.factors.padded(rank))) for c in candidates]
    best = 0
    for i, gap in enumerate(gaps):
        # Not below: also where they are equal, or not numbers.
        if gap < gaps[best]:
            best = i
    return candidates[best]
