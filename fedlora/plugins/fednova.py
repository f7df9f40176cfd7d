"""FedNova: an update counts by its direction, however many steps its worker has made.

Paper   Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in
        Heterogeneous Federated Optimization", NeurIPS 2020, arXiv:2007.07481, equations 7 and 8.
Rule    theta += tau_eff sum_u w_u D_u / a_u,  tau_eff = sum_u w_u a_u,  D_u = theta_u - theta_g.
        The server makes of every update theta_g + (tau_eff / a_u) D_u, and the method combines
        those as it does any others.
        a_u   K for K steps of SGD;
              (K - rho (1 - rho^K) / (1 - rho)) / (1 - rho) with momentum rho;
              a <- (1 - rate mu) a + 1 with a pull mu (FedProx in the space of factors);
              K for AdamW, whose steps are all of about one size.
Neutral equal a_u, or max_ratio = 1, change no update: FedAvg, bit for bit.
Needs   one number with every update. The server needs nothing but weighted sums.
Bias    A and B move apart, each along its own line: with c = tau_eff / a_u the product moves by
        c (D_B A_g + B_g D_A) + c^2 D_B D_A, so that a stretched update has more of its cross term.

Readings. One recursion gives every a_u above, steps of unequal rates (a warm-up) and momentum with
a pull included: a_u is how far a gradient that is 1 throughout would have gone, in units of the
highest rate. tau_eff is the mean of a_u with a pull too, where the authors' code takes the mean of
K: equal workers then make FedProx's step. a_u is the worker's own claim: it counts as at most
max_ratio times the lower median of those above 0, and at least as that part of it. A worker whose
steps were all skipped (float16's gradients overflowed) has gone nowhere, with an a_u of 0; where
nobody has gone anywhere no update is changed. test_fednova.py holds each of these.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import Ending, LocalHooks, LocalRound, PluginDefaults, Traits
from fedlora.runs.training import OptimizerName

__all__ = ["FedNova"]

_METRIC = "fednova_a"


@dataclass(frozen=True, slots=True, kw_only=True)
class FedNova(PluginDefaults):
    """An update counts by its direction, however many steps its worker has made."""

    max_ratio: float = 100.0
    """by how much the a_u of a cohort may differ from their median; 1 takes them for equal"""

    name: ClassVar[str] = "fednova"

    def __post_init__(self) -> None:
        if not 1 <= self.max_ratio < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "plugins.fednova.max_ratio: expected a finite number of at least 1, got "
                f"{self.max_ratio}",
            )

    @property
    def traits(self) -> Traits:
        """Updates are stretched from where their round began."""
        return Traits(
            whole_factors=True,
            sync_only=True,
            scales_updates=True,
            required_metrics=(_METRIC,),
        )

    def local(self, round: LocalRound) -> LocalHooks:
        """See `base.Plugin`."""
        way = _Way(round)
        return LocalHooks(after_step=way.step, end=lambda: Ending(metrics={_METRIC: way.distance}))

    def shares(
        self,
        metrics: Sequence[Mapping[str, float]],
        weights: Sequence[float],
        norms: Sequence[float],  # noqa: ARG002
    ) -> tuple[float, ...] | None:
        """See `base.Plugin`."""
        claimed = [m[_METRIC] for m in metrics]
        gone = [a for a in claimed if a > 0]
        if not gone:
            return None
        middle = statistics.median_low(gone)
        least, most = middle / self.max_ratio, middle * self.max_ratio
        lengths = [min(max(a, least), most) for a in claimed]
        if min(lengths) == max(lengths):
            return None
        effective = math.fsum(w * a for w, a in zip(weights, lengths, strict=True))
        return tuple(effective / a for a in lengths)


class _Way:
    """How far a gradient that is 1 throughout goes, in units of the highest rate."""

    def __init__(self, round: LocalRound) -> None:
        training = round.training
        plain = training.optimizer is OptimizerName.SGD
        self.distance = 0.0
        self._last = 0.0
        self._momentum = training.momentum
        pull = sum(plugin.traits.pull for plugin in round.plugins)
        self._pull = pull * training.learning_rate if plain else 0.0

    def step(self, share: float) -> None:
        """One step at a share of the highest rate."""
        self._last = self._momentum * self._last + 1 - self._pull * self.distance
        self.distance += share * self._last
