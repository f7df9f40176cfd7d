"""FedAdagrad, FedAdam and FedYogi: a step size of its own for every coordinate.

Paper   Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive Federated
        Optimization", ICLR 2021, arXiv:2003.00295, Algorithm 2.
Rule    D_t = (what the round came to) - x_t,  m_t = beta1 m_{t-1} + (1 - beta1) D_t,
            adagrad  v_t = v_{t-1} + D_t^2
            adam     v_t = beta2 v_{t-1} + (1 - beta2) D_t^2
            yogi     v_t = v_{t-1} - (1 - beta2) D_t^2 sign(v_{t-1} - D_t^2)
        x_{t+1} = x_t + lr m_t / (sqrt(v_t) + tau).
Bias    no setting is the plain mean; lr = tau -> inf with beta1 = 0 tends to it.
Needs   a method that keeps the clients' basis: m and v belong to entries of A and B.
Cost    two float64 tensors of state per tensor.

Readings. m_0 = v_0 = 0. The paper asks for v >= tau^2 at the start, which tau in the denominator
already stands for, and which would make Adam and Yogi differ in their first step. There is no
correction for the zero start, as in the paper: with the default betas a first step is lr, since
(1 - beta1) / sqrt(1 - beta2) = 1. v takes squares of D_t, not of m_t, as some public code has it.
test_adaptive.py holds each of these.

Defaults. A coordinate moves by about lr a round, however small its D_t, down to about tau: the
paper's lr of 0.1 and 0.01 would throw away an adapter whose entries are near 1e-2. lr = 1e-3 is
what a round of local training at the usual rates for LoRA comes to, and tau = 1e-3 the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedlora.errors import FedLoraError, Reason

__all__ = ["FedAdagrad", "FedAdam", "FedYogi"]

_FIRST, _SECOND = "m", "v"


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdagrad:
    """Steps over the root of all squared changes so far."""

    learning_rate: float = 1e-3
    """about how far an entry moves in the first round"""
    beta1: float = 0.0
    """share of the mean change that is kept from round to round"""
    tau: float = 1e-3
    """changes far below it are not scaled up to a full step"""

    name: ClassVar[str] = "fedadagrad"

    def __post_init__(self) -> None:
        _check(self.name, self.learning_rate, (self.beta1,), self.tau)

    def step(
        self, current: Tensor, proposed: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `base.ServerOptimizer`."""
        return _step(self, current, proposed, state, torch.add)


@dataclass(frozen=True, slots=True, kw_only=True)
class FedAdam:
    """Steps over the root of the mean squared change."""

    learning_rate: float = 1e-3
    """about how far an entry moves in a round"""
    beta1: float = 0.9
    """share of the mean change that is kept from round to round"""
    beta2: float = 0.99
    """share of the mean squared change that is kept from round to round"""
    tau: float = 1e-3
    """changes far below it are not scaled up to a full step"""

    name: ClassVar[str] = "fedadam"

    def __post_init__(self) -> None:
        _check(self.name, self.learning_rate, (self.beta1, self.beta2), self.tau)

    def step(
        self, current: Tensor, proposed: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `base.ServerOptimizer`."""
        return _step(self, current, proposed, state, self._second)

    def _second(self, held: Tensor, squares: Tensor) -> Tensor:
        return self.beta2 * held + (1 - self.beta2) * squares


@dataclass(frozen=True, slots=True, kw_only=True)
class FedYogi:
    """Steps over the root of a squared change that moves towards the latest by its size alone."""

    learning_rate: float = 1e-3
    """about how far an entry moves in a round"""
    beta1: float = 0.9
    """share of the mean change that is kept from round to round"""
    beta2: float = 0.99
    """1 - beta2 is the share of a squared change by which the kept one moves"""
    tau: float = 1e-3
    """changes far below it are not scaled up to a full step"""

    name: ClassVar[str] = "fedyogi"

    def __post_init__(self) -> None:
        _check(self.name, self.learning_rate, (self.beta1, self.beta2), self.tau)

    def step(
        self, current: Tensor, proposed: Tensor, state: Mapping[str, Tensor]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `base.ServerOptimizer`."""
        return _step(self, current, proposed, state, self._second)

    def _second(self, held: Tensor, squares: Tensor) -> Tensor:
        return held - (1 - self.beta2) * squares * (held - squares).sign()


def _step(
    options: FedAdagrad | FedAdam | FedYogi,
    current: Tensor,
    proposed: Tensor,
    state: Mapping[str, Tensor],
    accumulate: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """What the three have in common; `accumulate` makes v_t of v_{t-1} and D_t^2."""
    change = proposed - current
    zero = torch.zeros_like(change)
    first, second = (state.get(name, zero).to(zero) for name in (_FIRST, _SECOND))
    first = options.beta1 * first + (1 - options.beta1) * change
    second = accumulate(second, change.square())
    stepped = current + options.learning_rate * first / (second.sqrt() + options.tau)
    return stepped, {_FIRST: first, _SECOND: second}


def _check(name: str, learning_rate: float, betas: tuple[float, ...], tau: float) -> None:
    """Raises INVALID_ARGUMENT for options that no step can be made with."""
    finite = 0 < learning_rate < float("inf") and 0 < tau < float("inf")
    if not finite or not all(0 <= beta < 1 for beta in betas):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"{name}: expected learning_rate > 0 and tau > 0, both finite, and 0 <= beta < 1, got "
            f"{learning_rate}, {tau} and {', '.join(map(str, betas))}",
        )
