"""A bound on every update that the server measures itself, whatever its worker says.

Source  Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019,
        arXiv:1911.07963, section 4: norm thresholding of updates.
Rule    D_u <- D_u min(1, bound / |D_u|),  D_u = theta_u - theta_g over all that is sent: A, B and
        the modules trained in full, as one vector, in the worker's own scaling;
        bound = the smaller of max_norm and max_ratio times the lower median of the cohort's |D_u|.
Neutral max_norm = max_ratio = 0 measures nothing: FedAvg, bit for bit. So is a round in which no
        update goes beyond the bound.
Needs   nothing of the workers. The server reads every update once more.
Bias    towards what most workers do: an honest worker whose data ask for a longer way is cut too,
        and keeps its direction.

Readings. While more than half of a cohort is honest, the lower median is at most the longest honest
update, so that no update goes farther than max_ratio times that. Two colluding workers of three are
most of the cohort. A direction is not judged: within the bound, an update may point anywhere.
Weights are not bounded: numbers of examples are the workers' own claims, and the weighting rule
`uniform` takes none. What other plug-ins stretch is bounded as stretched; extras that they send
beside the update are not. test_norm_bound.py and test_plugin_extras.py hold what is said of norms
and of extras.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import PluginDefaults, Traits

__all__ = ["NormBound"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NormBound(PluginDefaults):
    """No update counts for more than a bound, which the server measures itself."""

    max_ratio: float = 2.0
    """largest change of an update, in those of the cohort's lower median; 0 for any"""
    max_norm: float = 0.0
    """largest Euclidean norm of an update's change; 0 for any"""

    name: ClassVar[str] = "norm_bound"

    def __post_init__(self) -> None:
        for key, value in (("max_ratio", self.max_ratio), ("max_norm", self.max_norm)):
            if not 0 <= value < float("inf"):
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    f"plugins.norm_bound.{key}: expected a finite number that is not negative, "
                    f"got {value}",
                )
        if 0 < self.max_ratio < 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"plugins.norm_bound.max_ratio: expected at least 1, got {self.max_ratio}: most "
                "updates would be cut",
                hint="Set max_norm for a bound of your own",
            )

    @property
    def traits(self) -> Traits:
        """Updates are cut where the server sums them."""
        bounds = self.max_ratio > 0 or self.max_norm > 0
        return Traits(
            whole_factors=bounds, sync_only=bounds, scales_updates=bounds, needs_norms=bounds
        )

    def shares(
        self,
        metrics: Sequence[Mapping[str, float]],  # noqa: ARG002
        weights: Sequence[float],  # noqa: ARG002
        norms: Sequence[float],
    ) -> tuple[float, ...] | None:
        """See `base.Plugin`."""
        if not norms:
            return None
        bounds = [self.max_norm] if self.max_norm else []
        if self.max_ratio:
            bounds.append(self.max_ratio * statistics.median_low(norms))
        bound = min(bounds)
        if max(norms) <= bound:
            return None
        return tuple(1.0 if norm <= bound else bound / norm for norm in norms)
