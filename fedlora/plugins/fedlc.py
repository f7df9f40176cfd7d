"""FedLC: logits are calibrated by how many examples of each class a worker has, while it trains.

Paper   Zhang, Li, Li, Xu, Wu, Ding, Wu, "Federated Learning with Label Distribution Skew via Logits
        Calibration", ICML 2022, arXiv:2209.00189.
Rule    the loss of a target y is CE(z_j - tau n_j^(-1/4), y), with n_j the worker's examples of
        class j: of two classes, the one that it has fewer of is asked for the wider margin.
Neutral tau = 0 adds no operation: FedAvg, bit for bit. Equal n_j shift all logits alike: the loss
        is CE, but for rounding.
Needs   classes, and a worker's own counts of them, which it does not send.
Cost    none; nothing on the wire.

`training.logit_adjustment` (Menon et al. 2021) adds t log(n_j / n) to the logits instead: that
follows from a change of the prior, and knows no scale, as n_j 10 times as large shift nothing;
these margins come of a bound on the error by class, and shrink as n_j grows. A run has one of the
two.

Readings. The true class stays in the sum of the denominator: the paper takes it out, and with that
a public implementation (FL-bench) saw training collapse. A class that the worker does not have
counts as 1e-8 of an example: its offset is -100 tau, and its gradient e^(-100 tau) times as large
or so, which Adam makes full steps of where tau is below some 0.2. What is scored is scored by CE,
and so is trained what a worker keeps for itself (ditto); train_loss is the calibrated loss.
test_fedlc.py and test_plugin_rounds.py hold each of these.

Shape suffixes: N targets, V classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import LocalHooks, LocalRound, PluginDefaults, Traits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FedLC"]

_ABSENT = 1e-8
"""examples that a class counts with where there are none"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FedLC(PluginDefaults):
    """Calibrates the logits by how many examples of each class a worker has, while it trains."""

    tau: float = 1.0
    """strength of the calibration; 0 for none"""

    name: ClassVar[str] = "fedlc"

    def __post_init__(self) -> None:
        if not 0 <= self.tau < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"plugins.fedlc.tau: expected a finite number that is not negative, got {self.tau}",
            )

    @property
    def traits(self) -> Traits:
        """It is about classes, and is the loss of a step where it does anything."""
        return Traits(needs_labels=True, replaces_criterion=self.tau != 0)

    def local(self, round: LocalRound) -> LocalHooks:
        """See `base.Plugin`."""
        if self.tau == 0:
            return LocalHooks()
        offsets = [self.tau * max(n, _ABSENT) ** -0.25 for n in round.class_counts]

        def calibrated(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
            logits_NV = logits_NV - logits_NV.new_tensor(offsets)
            own_N1 = logits_NV.gather(-1, targets_N.unsqueeze(-1))
            return (logits_NV.logsumexp(-1, keepdim=True) - own_N1).sum()

        return LocalHooks(criterion=calibrated)
