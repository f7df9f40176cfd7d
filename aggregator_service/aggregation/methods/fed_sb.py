"""Fed-SB: fix A and B, and train the small square matrix between them.

Paper   Singhal, Ponkshe, Vartak, Varshney, Vepakomma, "Fed-SB: A Silver Bullet for Extreme
        Communication Efficiency and Performance in (Private) Federated LoRA Fine-Tuning", 2025,
        arXiv:2502.15436.
Rule    the update is B R A with A and B fixed;  R = sum_u w_u R_u.
Bias    none: B (sum_u w_u R_u) A = sum_u w_u B R_u A. Noise added for privacy enters linearly.
Needs   workers that train a core; one rank for the whole cohort.
Cost    2 U r^2 flops per module.

An update is r^2 numbers, whatever the layer's size: at r = 200 still less than rank 5 of a
4096 x 4096 layer. All a run can learn lies within the columns of B and the rows of A that it
begins with.

Readings. The paper takes A and B from the singular vectors of a first full gradient step (LoRA-SB);
a run here begins from the A and B that its first worker sends, made in whichever way, and with
R = I or zero as sent. Mixed ranks are refused, though cores padded with zeros would be exact as
well: a worker's sub-block says nothing of the entries it does not have. A core is folded into B
before an adapter is exported, since PEFT knows none (test_fed_sb.py and the federations of scripted
workers hold these).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aggregator_service.aggregation.base import About, Combination, MethodDefaults, Properties, Work
from aggregator_service.aggregation.common_factor import common_factor
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.draws import Side
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.module_cohort import ModuleCohort, uniform_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.numerics import weighted_sum
from fedlora.runs.plan import RoundPlan

__all__ = ["FedSB"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedSB(MethodDefaults):
    """Mean of the cores between a fixed A and B."""

    name: ClassVar[str] = "fed_sb"
    about: ClassVar[About] = About(
        title="Fed-SB",
        paper="Singhal et al. 2025, arXiv:2502.15436",
        exactness="exact, within fixed columns and rows",
        cost="2Ur^2",
        needs="workers that train a core; one rank for the cohort",
        choose="hardly any traffic at a high rank, or differential privacy",
    )
    properties: ClassVar[Properties] = Properties(
        exact=True,
        linear=True,
        keeps_basis=True,
        mixed_ranks=False,
    )
    compression: ClassVar[Keep] = Keep()

    @property
    def plans(self) -> tuple[RoundPlan, ...]:
        """The core is trained and sent; nothing else is touched."""
        return (RoundPlan(trained=(Part.CORE,), published=(Part.CORE,)),)

    def combine(self, cohort: ModuleCohort, work: Work) -> Combination:
        """The mean of the cores; see `base.Method`.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD for updates without cores.
        """
        uniform_rank(self.name, cohort, mixed=False, rank=work.rank)
        if any(Part.CORE not in extras for extras in cohort.extras):
            raise FedLoraError(
                Reason.UNSUPPORTED_METHOD,
                "fed_sb averages the cores of updates, got adapters without one",
                hint="Saved PEFT adapters have no core: use optimal, fedit or flora",
            )
        core_RR = weighted_sum([e[Part.CORE] for e in cohort.extras], cohort.weights_U)
        # The members' B has their core in it already, and A is common: their mean has R's.
        mean = factor_mean(cohort.members, cohort.weights_U)
        factors = LoraFactors(common_factor(self.name, cohort, Side.A), mean.b_DR)
        return Combination(factors=factors, extras={Part.CORE: core_RR})
