"""What a worker's metrics tell of its device."""

from __future__ import annotations

from support.nvml import Gpu, StandInNvml

from client_worker.device_figures import own_readings
from fedlora.devices import NvmlDevices, Reading

ONE, TWO = Gpu(uuid="GPU-1"), Gpu(uuid="GPU-2", used=5, total=9, utilisation=25, celsius=None)


def test_the_figures_are_those_of_the_workers_own_device():
    assert own_readings(NvmlDevices(StandInNvml([ONE, TWO])), "GPU-2") == {
        "GPU-2": Reading(
            memory_used_bytes=5,
            memory_total_bytes=9,
            utilisation_percent=25,
            temperature_celsius=None,
        )
    }


def test_a_device_that_does_not_answer_and_a_cpu_have_none():
    silent = NvmlDevices(StandInNvml([ONE], silent={"GPU-1"}))
    assert own_readings(silent, "GPU-1") == {}
    assert own_readings(NvmlDevices(), "") == {}
