"""What a worker tells whoever counts: steps, rounds, retries and bytes, each with its details.

The worker knows this protocol and nothing of what is made of it; `client_worker.metrics` makes
Prometheus metrics. Where the worker stands is looked up by whoever asks, and not told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from fedlora.errors import Reason

__all__ = ["RoundTrained", "Silent", "StepDone", "Telemetry"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """One step of the optimiser."""

    round: int
    completed_steps: int
    total_steps: int
    metrics: Mapping[str, float]
    """finite ones: train_loss, learning_rate"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrained:
    """A round's local training is done."""

    round: int
    num_examples: int
    metrics: Mapping[str, float]
    """finite ones: train_loss, train_seconds, examples_per_second, peak_device_bytes"""


class Telemetry(Protocol):
    """Told by the worker's threads as it happens; must neither block nor raise."""

    def step_done(self, step: StepDone) -> None:
        """Training has gone one step further."""
        ...

    def round_trained(self, trained: RoundTrained) -> None:
        """There is an update to be sent."""
        ...

    def tried_again(self, reason: Reason) -> None:
        """A call has failed and will be made again."""
        ...

    def received(self, num_bytes: int) -> None:
        """Bytes of an adapter have come."""
        ...

    def sent(self, num_bytes: int) -> None:
        """Bytes of an update were handed to the network."""
        ...


class Silent:
    """Counts nothing."""

    def step_done(self, step: StepDone) -> None:
        """See Telemetry."""

    def round_trained(self, trained: RoundTrained) -> None:
        """See Telemetry."""

    def tried_again(self, reason: Reason) -> None:
        """See Telemetry."""

    def received(self, num_bytes: int) -> None:
        """See Telemetry."""

    def sent(self, num_bytes: int) -> None:
        """See Telemetry."""
