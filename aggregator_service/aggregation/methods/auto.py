"""auto: the cheapest surrogate that is near enough, module by module.

Source  our own; the members are those of `flora_na` (arXiv:2509.26399, Eq. 6, and what lies around
        it) and the optimum of Eckart and Young, Psychometrika 1, 1936.
Rule    of factor mean, scalar, diagonal, optimal, in this order, the first with
        |B A - T| <= tolerance |T|; where none has, the one with the least error.
Bias    at most `tolerance`, relative to T, wherever the rank allows it; never worse than `fedit`.
Needs   nothing but the factors. Mixed ranks: lower ranks are padded with zero components.
Cost    2 R (D + K) flops where the factor mean is near enough; up to the sum of all members'.

Errors are those of what is published: scaled, rounded and read back. So a tolerance below the
rounding of the published type is met by none, and the best is taken.

All members speak the clients' basis: the optimum is factored with A closest to the factor mean's.

Measured: `member` (0 factor mean, 1 scalar, 2 diagonal, 3 optimal), `met_tolerance`,
`relative_error`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from aggregator_service.aggregation.surrogates import Solver, Surrogate, SurrogateFamily
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason

__all__ = ["Auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Auto(MethodDefaults):
    """The cheapest member of the family of surrogates that meets a tolerance."""

    tolerance: float = 0.05
    """largest error that is good enough, relative to the norm of the ideal aggregate"""

    name: ClassVar[str] = "auto"
    reads_grams: ClassVar[bool] = True
    stacks: ClassVar[bool] = True
    about: ClassVar[About] = About(
        title="Cheapest surrogate within a tolerance",
        paper="ours; members from Nguyen et al. 2025, arXiv:2509.26399",
        exactness="within the tolerance where the rank allows it, never worse than fedit",
        cost="from 2R(d+k) to 4R^2(d+k) + O(R^3) per half-step",
        needs="nothing",
        choose="you know what error you accept, and not which method gives it",
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
        if not 0 <= self.tolerance < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"auto: expected a tolerance of at least 0, got {self.tolerance}",
            )

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The first member that is near enough; see `base.Method`."""
        uniform_rank(self.name, cohort, mixed=True, rank=work.rank)
        family = SurrogateFamily(cohort, Solver())
        ideal = family.centred.ideal_norm()
        least = float("inf")
        chosen: Surrogate = family.factor_mean()
        for member in _ladder(family, work.generator):
            error = family.centred.error_of(work.publication.read_back(member.factors))
            if error < least:
                chosen, least = member, error
            if least <= self.tolerance * ideal:
                break
        measured = {
            "member": float(chosen.member),
            "met_tolerance": float(least <= self.tolerance * ideal),
        }
        if ideal > 0:
            measured["relative_error"] = least / ideal
        return Combination(factors=chosen.factors, measurements=measured)


def _ladder(family: SurrogateFamily, generator: torch.Generator) -> Iterator[Surrogate]:
    """The members, cheapest first, each made when it is asked for."""
    yield family.factor_mean()
    scalar = family.scalar(generator)
    yield scalar
    yield family.diagonal(scalar)
    yield family.optimal()
