"""FLoRA-NA: the clients' factors summed with coefficients that make the product nearly right.

Paper   L.-T. Nguyen, M.-D. Nguyen, Jeong, Le, Pham, "Communication-Efficient and Accurate
        Approach for Aggregation in Federated Low-Rank Adaptation", 2025, arXiv:2509.26399, Eq. 6.
Rule    B = sum_u p_u B_u,  A = sum_u q_u A_u,  with (p, q) per module minimising
        J(p, q) = |B A - sum_u w_u B_u A_u|_F^2.
Bias    not exact: 2U - 1 numbers cannot represent a mean of rank up to U r. Undoes differences
        of scale between clients, little of ordinary drift; never worse than `fedit`, never
        better than `optimal`.
Needs   nothing but the factors. Mixed ranks: lower ranks are padded with zero components. The
        frozen weight W0 for the weighted fit and for least-squares magnitudes.
Cost    R^2 (D + K) flops for the Gram matrices, then O(R^2 + U^3) per half-step, R = U r. With
        diagonal coefficients O(R^3) per half-step; full ones cost what `optimal` costs.

Readings. The paper gives equal weights 1/U: w_u = n_u / N here. It does not say how Eq. 6 is
solved: alternating least squares on Gram matrices (`scalar_als`), each half-step exact, from
several starts: the factor mean p = q = w, the best multiple of a single client, and seeded
random pairs. The best one is kept (test_flora_na.py holds each of these readings).

Beyond the paper. Its P and Q are one number per client. One per client and component, and whole
matrices, are the same problem with more freedom (`surrogates`), and ours. The matrices' minimum
is the truncated singular value decomposition of T; here it is published in the basis of the
factor mean.

DoRA and HiRA. The paper reports both; how it combines them is not known to us. HiRA's mean update
is W0 o T exactly, so J applies as it stands; `hadamard = weighted` minimises |W0 o (B A - T)|
instead (`hadamard_als`). DoRA's direction is B A as above, its magnitudes are the mean or the
least-squares scale for the published direction (`magnitudes`). Without W0 on the server the
plain fit and the mean are used, and `weighted_fit` or `fitted_magnitudes` is 0.

Never worse than `fedit` is decided on what is published: all candidates are scaled, rounded
and read back, and the factor mean is kept unless another has the smaller error.

A small J can mean that one client's update is being published: see `concentration`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.hadamard_als import HadamardProblem
from aggregator_service.aggregation.magnitudes import Magnitudes, combine_magnitudes
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from aggregator_service.aggregation.surrogates import (
    Componentwise,
    Member,
    Solver,
    Surrogate,
    SurrogateFamily,
    nearest,
)
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason

__all__ = ["Coefficients", "FLoRANA", "Hadamard"]


class Coefficients(enum.StrEnum):
    """What multiplies a client's factor."""

    SCALAR = "scalar"
    DIAGONAL = "diagonal"
    FULL = "full"


class Hadamard(enum.StrEnum):
    """The norm in which a HiRA product is fitted."""

    PLAIN = "plain"
    WEIGHTED = "weighted"


@dataclass(frozen=True, slots=True, kw_only=True)
class FLoRANA(MethodDefaults):
    """Surrogate of the mean product in the clients' basis."""

    coefficients: Coefficients = Coefficients.SCALAR
    """scalar: one number per client and factor; diagonal: one per client, component and factor;
    full: a matrix per client and factor, the best of that rank"""
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
    hadamard: Hadamard = Hadamard.PLAIN
    """for HiRA: plain, or weighted with the frozen weight, which the server must have"""
    magnitudes: Magnitudes = Magnitudes.MEAN
    """for DoRA: mean, or least_squares, for which the server must have the frozen weight"""
    report_coefficients: bool = False
    """every layer's P and Q among its measurements, p[worker] and q[worker]; of diagonal ones
    p[worker,component]"""

    name: ClassVar[str] = "flora_na"
    reads_grams: ClassVar[bool] = True
    stacks: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="FLoRA-NA",
        paper="Nguyen et al. 2025, arXiv:2509.26399",
        exactness="never worse than fedit, never better than optimal",
        cost="R^2(d+k) + O(R^2 + U^3) per half-step",
        needs="nothing",
        choose="clients differ in scale, and their basis should last",
    )
    properties: ClassVar[Properties] = Properties(
        exact=False,
        linear=False,
        keeps_basis=True,
        mixed_ranks=True,
        kinds=frozenset(AdapterKind),
    )
    compression: ClassVar[Keep] = Keep()

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
        if self.hadamard is Hadamard.WEIGHTED and self.coefficients is not Coefficients.SCALAR:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "flora_na fits scalars in the weighted norm, got hadamard = weighted with "
                f"coefficients = {self.coefficients.value}",
                hint="Set coefficients = scalar, or hadamard = plain",
            )

    @property
    def reads_base(self) -> frozenset[AdapterKind]:
        """For the weighted fit of HiRA and the least-squares magnitudes of DoRA."""
        wanted = {
            AdapterKind.HIRA: self.hadamard is Hadamard.WEIGHTED,
            AdapterKind.DORA: self.magnitudes is Magnitudes.LEAST_SQUARES,
        }
        return frozenset(kind for kind, needed in wanted.items() if needed)

    def magnitude(self, cohort: ModuleCohort, published: LoraFactors) -> Tensor:
        """The mean, or the least-squares scale; see `magnitudes`."""
        base = cohort.start.base if cohort.start else None
        return combine_magnitudes(cohort, published, self.magnitudes, base=base)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The best surrogate found; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        family = SurrogateFamily(cohort, self._solver)
        if self.hadamard is Hadamard.WEIGHTED and cohort.base_rows is not None:
            problem = HadamardProblem(family.centred, cohort.base_rows, ridge=self.ridge)
            candidates = self._weighted(family, problem, work.generator)
            chosen = nearest(candidates, work.publication, problem.objective_of)
        else:
            candidates = self._plain(family, work)
            chosen = candidates[0]
            if len(candidates) > 1:
                chosen = nearest(candidates, work.publication, family.centred.excess_of)
        measured = {
            **candidates[-1].measurements,
            **chosen.measurements,
            "member": float(chosen.member),
            "kept_factor_mean": float(chosen.member is Member.FACTOR_MEAN),
        }
        if self.hadamard is Hadamard.WEIGHTED:
            measured["weighted_fit"] = float(cohort.base_rows is not None)
        if self.report_coefficients and isinstance(chosen, Componentwise):
            measured |= chosen.coefficients(cohort.names)
        if self.magnitudes is Magnitudes.LEAST_SQUARES:
            measured["fitted_magnitudes"] = float(cohort.base_rows is not None)
        return Combination(factors=chosen.factors, measurements=measured)

    def _plain(self, family: SurrogateFamily, work: Work) -> list[Surrogate]:
        """What may be published, from the factor mean to the member asked for."""
        if self.coefficients is Coefficients.FULL:
            return [family.factor_mean(), family.optimal()]
        scalar = family.scalar(work.generator)
        if self.coefficients is Coefficients.SCALAR:
            clear = family.is_clear(scalar, work.publication)
            return [scalar] if clear else [family.factor_mean(), scalar]
        return [family.factor_mean(), scalar, family.diagonal(scalar)]

    def _weighted(
        self, family: SurrogateFamily, problem: HadamardProblem, generator: torch.Generator
    ) -> list[Surrogate]:
        """The factor mean, the scalar member, and the scalar member of the weighted norm.

        The search in that norm begins at the nearer of the other two, so that before rounding it
        ends above neither.
        """
        mean, scalar = family.factor_mean(), family.scalar(generator)
        start = min(mean, scalar, key=lambda c: problem.objective_of(c.factors))
        found = problem.solve(
            start.p_RU[0], start.q_RU[0], max_sweeps=self.max_sweeps, tolerance=self.tolerance
        )
        measurements = {**scalar.measurements, "weighted_sweeps": float(found.sweeps)}
        return [mean, scalar, family.of_scalars(found, measurements, instead=start)]

    @property
    def _solver(self) -> Solver:
        return Solver(
            max_sweeps=self.max_sweeps,
            tolerance=self.tolerance,
            random_starts=self.random_starts,
            ridge=self.ridge,
            max_concentration=self.max_concentration,
        )
