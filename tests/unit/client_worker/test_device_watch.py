"""How the worker's device does, in its log."""

from __future__ import annotations

import threading

import structlog

from client_worker.device_watch import DeviceWatch
from fedlora.devices import Reading
from fedlora.errors import FedLoraError, Reason

READING = Reading(
    memory_used_bytes=1, memory_total_bytes=4, utilisation_percent=None, temperature_celsius=40
)


class Device:
    """Answers in turn with what it was given, the last of it for ever; None is silence."""

    def __init__(self, *answers: Reading | None) -> None:
        self._answers = list(answers)
        self.last_asked = threading.Event()

    def __call__(self) -> Reading:
        answer = self._answers.pop(0)
        if not self._answers:
            self._answers.append(answer)
            self.last_asked.set()
        if answer is None:
            raise FedLoraError(Reason.DEVICE_UNAVAILABLE, "the device GPU-x does not answer")
        return answer


def told_of(device: Device) -> list[dict[str, object]]:
    with (
        structlog.testing.capture_logs() as lines,
        DeviceWatch(device, worker="w", interval_seconds=0),
    ):
        assert device.last_asked.wait(30)
    return lines


def test_the_first_reading_is_told_at_once_with_whose_device_it_is():
    first = told_of(Device(READING))[0]
    assert first == {
        "event": "device",
        "log_level": "info",
        "worker": "w",
        "memory_used_bytes": 1,
        "memory_total_bytes": 4,
        "utilisation_percent": None,
        "temperature_celsius": 40,
    }


def test_silence_is_told_once_and_does_not_end_the_watch():
    lines = told_of(Device(READING, None, None, None, READING, None, None, READING))
    events = [line["event"] for line in lines[:4]]
    assert events == ["device", "device_silent", "device", "device_silent"]


def test_a_watch_that_waits_ends_at_once():
    device = Device(READING)
    with DeviceWatch(device, worker="w", interval_seconds=3600.0) as watch:
        assert device.last_asked.wait(30)
    assert not watch._thread.is_alive()
