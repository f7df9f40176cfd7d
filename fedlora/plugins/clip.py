"""Norm clipping: no update goes farther than a bound from where its round began.

Source  Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019,
        arXiv:1911.07963; the bound of DP-FedAvg (McMahan et al. 2018, arXiv:1710.06963).
Rule    D <- D min(1, max_norm / |D|),  D = theta_u - theta_g over all that is trained: A, B and the
        modules trained in full, as one vector.
Neutral max_norm = 0 adds no operation: FedAvg, bit for bit. An update within the bound stays as it
        is, bit for bit.
Cost    one pass over what is trained, on the worker; nothing on the wire.

Readings. The worker clips itself: this bounds what honest workers send, and trusts them. A and B
are clipped as factors, so that s B A moves by no more than s (|B_g| + |A_g|) max_norm + s
max_norm^2. What other plug-ins send beside the update is not clipped. test_clip.py and
test_plugin_readings.py hold each of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import LocalHooks, LocalRound, PluginDefaults, Traits

__all__ = ["Clip"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip(PluginDefaults):
    """No update goes farther than a bound from where its round began."""

    max_norm: float = 1.0
    """largest Euclidean norm of an update's change; 0 for any"""

    name: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        if not 0 <= self.max_norm < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "plugins.clip.max_norm: expected a finite number that is not negative, got "
                f"{self.max_norm}",
            )

    @property
    def traits(self) -> Traits:
        """All that it clips is sent."""
        return Traits(edits_updates=True)

    def local(self, round: LocalRound) -> LocalHooks:
        """See `base.Plugin`."""

        def clip() -> None:
            changes = {n: t.double() - round.given[n] for n, t in round.trained.items()}
            norm = math.sqrt(math.fsum(float(c.square().sum()) for c in changes.values()))
            if norm > self.max_norm:
                for name, tensor in round.trained.items():
                    tensor.copy_(round.given[name] + changes[name] * (self.max_norm / norm))

        return LocalHooks(edit_update=clip if self.max_norm else None)
