"""FedProx: local training is held near the adapter that the round began from.

Paper   Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous
        Networks", MLSys 2020, arXiv:1812.06127, equation 2.
Rule    worker u minimises f_u(theta) + (mu/2) |theta - theta_g|^2.
Neutral mu = 0 adds no operation: FedAvg, bit for bit.
Cost    a second copy of what is trained, on the worker; nothing on the wire.

Readings. The norm is squared and has the one half: public code leaves out one or the other. With
`space = "product"` the distance is that of s B A, which no change of coordinates moves; modules
trained in full and DoRA's magnitudes keep the plain distance, HiRA's product is taken without the
frozen weight. AdamW divides the penalty's gradient as it does the loss's. test_fedprox.py and
test_plugin_readings.py hold each of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import LocalHooks, LocalRound, PluginDefaults, Traits
from fedlora.plugins.proximal import Space, proximal_penalty

__all__ = ["FedProx"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FedProx(PluginDefaults):
    """Holds local training near the adapter that the round began from."""

    mu: float = 0.01
    """strength of the pull; 0 for none"""
    space: Space = Space.FACTORS
    """what is held: factors, the numbers that are trained; product, s B A of each module"""

    name: ClassVar[str] = "fedprox"

    def __post_init__(self) -> None:
        if not 0 <= self.mu < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"plugins.fedprox.mu: expected a finite number that is not negative, got {self.mu}",
            )

    @property
    def traits(self) -> Traits:
        """It pulls every number alike only in the space of factors."""
        return Traits(whole_factors=True, pull=self.mu if self.space is Space.FACTORS else 0.0)

    def local(self, round: LocalRound) -> LocalHooks:
        """See `base.Plugin`."""
        return LocalHooks(penalty=proximal_penalty(round, self.mu, self.space))
