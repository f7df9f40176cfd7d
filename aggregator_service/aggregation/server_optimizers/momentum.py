"""FedAvgM: the global adapter keeps moving where the rounds before took it.

Paper   Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated
        Visual Classification", 2019, arXiv:1909.06335.
Rule    x_{t+1} = x_t + lr v_t,  v_t = beta v_{t-1} + (1 - dampening) D_t,  v_1 = D_1,
        D_t = (what the round came to) - x_t.
Bias    none for beta = 0, lr = 1, dampening = 0: x_{t+1} is what the round came to, bit for bit.
Needs   a method that keeps the clients' basis: v is a direction of A and B, not of B A.
Cost    one float64 tensor of state per tensor.

Readings. Two conventions are in use. Without dampening (the paper) steady updates D add up to
lr D / (1 - beta) a round; with dampening = beta v is their moving mean and they stay lr D.
v_1 = D_1 is both the paper's v_0 = 0 without dampening and the usual start of a moving mean. A
and B move on their own: their product moves by both, and by their cross term.
test_momentum.py holds each of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedlora.errors import FedLoraError, Reason

__all__ = ["Momentum"]

_VELOCITY = "v"


@dataclass(frozen=True, slots=True, kw_only=True)
class Momentum:
    """Heavy ball, or a moving mean, on the change of each round."""

    learning_rate: float = 1.0
    """share of the velocity that the adapter moves by"""
    beta: float = 0.9
    """share of the velocity that is kept from round to round; 0 for none"""
    dampening: float = 0.0
    """share of each round's change that is left out; beta for a moving mean"""

    name: ClassVar[str] = "fedavgm"

    def __post_init__(self) -> None:
        share = 0 <= self.beta < 1 and 0 <= self.dampening < 1
        if not share or not 0 < self.learning_rate < float("inf"):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "fedavgm: expected a finite learning_rate > 0, 0 <= beta < 1 and "
                f"0 <= dampening < 1, got {self.learning_rate}, {self.beta} and {self.dampening}",
            )

    def step(
        self, current: Tensor, proposed: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `base.ServerOptimizer`."""
        change = proposed - current
        velocity = change
        if _VELOCITY in state:
            velocity = self.beta * state[_VELOCITY].to(current) + (1 - self.dampening) * change
        # Not current + ..: current + (proposed - current) is proposed but for its last bit.
        return proposed + (self.learning_rate * velocity - change), {_VELOCITY: velocity}
