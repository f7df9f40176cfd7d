"""Ditto: every worker trains an adapter of its own beside the global one, and is held near it.

Paper   Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization",
        ICML 2021, arXiv:2012.04221, algorithm 1.
Rule    once the update of the round is made, the worker goes on with its own adapter v from where
        it was: v minimises f_u(v) + (lam/2) |v - theta_g|^2, theta_g being what the round began
        from. With SGD that is v -= rate (grad f_u(v) + lam (v - theta_g)).
Neutral the global adapter is that of the same run without Ditto, bit for bit, for every lam. With
        lam = 0 v is trained on the worker's data alone.
State   v, kept by the worker over restarts (`worker.cache_dir`) and never sent. It begins as the
        global adapter of the worker's first round.
Cost    local training twice.

Readings. v makes as many steps as the round, over the same data in another order. Where published
versions are scored, v is too, as `personal_...`. AdamW divides the pull's gradient as it does the
loss's. test_ditto.py, test_plugin_readings.py and test_plugins_over_grpc.py hold each of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import LocalHooks, LocalRound, PluginDefaults, Traits
from fedlora.plugins.proximal import Space, proximal_penalty

__all__ = ["Ditto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ditto(PluginDefaults):
    """Every worker trains an adapter of its own, held near the global one, and keeps it."""

    lam: float = 0.1
    """lambda, the strength of the pull towards the global adapter; 0 for none"""

    name: ClassVar[str] = "ditto"

    def __post_init__(self) -> None:
        if not 0 <= self.lam < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"plugins.ditto.lam: expected a finite number that is not negative, got {self.lam}",
            )

    @property
    def traits(self) -> Traits:
        """Its pull compares A with A and B with B, from round to round."""
        return Traits(whole_factors=True, factor_state=True, personal=True)

    def personal(self, round: LocalRound) -> LocalHooks:
        """See `base.Plugin`."""
        return LocalHooks(penalty=proximal_penalty(round, self.lam, Space.FACTORS))
