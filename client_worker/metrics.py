"""The worker's Prometheus metrics, listed in docs/metrics.md.

Loaded only where they are asked for: `worker.metrics_address`. A process is one worker, so its name
is on one series, `fedlora_worker_info`, to be joined with the others by instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from client_worker.session import State
from client_worker.telemetry import RoundTrained, StepDone
from fedlora.errors import Reason
from fedlora.telemetry.endpoint import MetricsEndpoint
from fedlora.telemetry.process_metrics import DeviceReadings, Expiry, never, process_registry

__all__ = ["WorkerMetrics"]


class WorkerMetrics:
    """A Telemetry (see `client_worker.telemetry`) that counts, and the page that shows it.

    Args:
        devices: what the worker trains on.
        expires: when its identity ends.
    """

    def __init__(self, devices: DeviceReadings, expires: Expiry = never) -> None:
        self._registry = process_registry("worker", devices=devices, expires=expires)
        gauge, counter = self._gauge, self._counter
        self._round = gauge("round", "Round that is trained for, or was last.")
        self._step = gauge("round_steps", "Steps done in this round.")
        self._planned = gauge("planned_steps", "Steps that this round has.")
        self._loss = gauge("train_loss", "Training loss of the last step.")
        self._rate = gauge("examples_per_second", "Examples a second in the last trained round.")
        self._peak = gauge("peak_device_bytes", "Most device memory in the last trained round.")
        self._steps = counter("steps", "Steps of the optimiser.")
        self._rounds = counter("rounds_trained", "Rounds whose training came to its end.")
        self._retries = counter("retries", "Calls that failed and were made again.", "reason")
        moved = counter("payload_bytes", "Bytes of adapters in, of updates out.", "direction")
        self._received, self._sent = moved.labels("in"), moved.labels("out")

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"fedlora_worker_{name}", text, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"fedlora_worker_{name}", text, labels, registry=self._registry)

    def step_done(self, step: StepDone) -> None:
        """See Telemetry."""
        self._steps.inc()
        self._round.set(step.round)
        self._step.set(step.completed_steps)
        self._planned.set(step.total_steps)
        if "train_loss" in step.metrics:
            self._loss.set(step.metrics["train_loss"])

    def round_trained(self, trained: RoundTrained) -> None:
        """See Telemetry."""
        self._rounds.inc()
        for name, gauge in (("examples_per_second", self._rate), ("peak_device_bytes", self._peak)):
            if name in trained.metrics:
                gauge.set(trained.metrics[name])

    def tried_again(self, reason: Reason) -> None:
        """See Telemetry."""
        self._retries.labels(reason.value).inc()

    def received(self, num_bytes: int) -> None:
        """See Telemetry."""
        self._received.inc(num_bytes)

    def sent(self, num_bytes: int) -> None:
        """See Telemetry."""
        self._sent.inc(num_bytes)

    def page(
        self, address: str, *, worker: str, device: str, state: Callable[[], State]
    ) -> MetricsEndpoint:
        """The page, of what was told and of where the worker stands at each scrape.

        Args:
            address: host:port.
            worker: its name.
            device: as `client_worker.device.resolve_device` returned it.
            state: where it stands; asked from the thread of a scrape.
        """
        self._registry.register(_Standing(worker, device, state))
        return MetricsEndpoint(address, self._registry, key="worker.metrics_address")


class _Standing(Collector):
    def __init__(self, worker: str, device: str, state: Callable[[], State]) -> None:
        self._labels = {"worker": worker, "device": device}
        self._state = state

    def collect(self) -> Iterable[Metric]:
        """See Collector."""
        yield InfoMetricFamily("fedlora_worker", "Name and device of this worker.", self._labels)
        now = self._state()
        states = GaugeMetricFamily(
            "fedlora_worker_state", "1 for where this worker stands, 0 else.", labels=["state"]
        )
        for state in State:
            states.add_metric([state.value], float(state is now))
        yield states
