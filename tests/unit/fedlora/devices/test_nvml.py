"""What NVML tells of a machine's devices."""

from __future__ import annotations

import sys

import pytest
from support.nvml import Gpu, StandInNvml

from fedlora.devices import NvmlDevices, Reading, nvml
from fedlora.errors import FedLoraError, Reason

ONE, TWO = Gpu(uuid="GPU-11111111-aaaa"), Gpu(uuid="GPU-22222222-bbbb", used=5, total=9)
DIVIDED = Gpu(uuid="GPU-33333333-cccc", instances=("MIG-a", "", "MIG-b"))


def refused(ask) -> FedLoraError:
    with pytest.raises(FedLoraError) as caught:
        ask()
    return caught.value


def test_gpus_are_listed_by_number_with_their_uuids():
    library = StandInNvml([ONE, TWO])
    found = NvmlDevices(library).present()
    assert [(d.number, d.uuid, d.name) for d in found] == [
        ("0", ONE.uuid, "NVIDIA H"),
        ("1", TWO.uuid, "NVIDIA H"),
    ]
    assert library.num_open == 0


def test_the_instances_of_a_divided_gpu_stand_in_its_place():
    found = NvmlDevices(StandInNvml([ONE, DIVIDED])).present()
    assert [(d.number, d.uuid) for d in found] == [
        ("0", ONE.uuid),
        ("1:0", "MIG-a"),
        ("1:2", "MIG-b"),
    ]


@pytest.mark.parametrize(
    "missing", [StandInNvml.NVML_ERROR_LIBRARY_NOT_FOUND, StandInNvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_a_machine_without_a_driver_has_no_devices(missing):
    assert NvmlDevices(StandInNvml([ONE], init_error=missing)).present() == ()


def test_a_driver_that_does_not_work_is_an_error_and_not_a_machine_without_devices():
    broken = StandInNvml([ONE], init_error=StandInNvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    error = refused(NvmlDevices(broken).present)
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert "does not work: NVML error 18" in str(error)


def test_a_driver_without_the_package_is_told_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(nvml, "_CONTROL", nvml.Path("/"))
    assert "fedlora[gpu]" in str(refused(NvmlDevices().present))
    monkeypatch.setattr(nvml, "_CONTROL", nvml.Path("/nonexistent"))
    assert NvmlDevices().present() == ()
    assert refused(lambda: NvmlDevices().read("GPU-x")).reason is Reason.DEVICE_UNAVAILABLE


def test_a_reading_has_memory_utilisation_and_temperature_of_the_device_named():
    library = StandInNvml([ONE, TWO])
    assert NvmlDevices(library).read(TWO.uuid) == Reading(
        memory_used_bytes=5, memory_total_bytes=9, utilisation_percent=50, temperature_celsius=40
    )
    assert library.num_open == 0


def test_an_instance_has_the_temperature_of_its_gpu_and_tells_no_utilisation():
    reading = NvmlDevices(StandInNvml([DIVIDED])).read("MIG-b")
    assert (reading.utilisation_percent, reading.temperature_celsius) == (None, 40)


def test_figures_that_a_gpu_does_not_tell_are_left_out():
    dumb = Gpu(uuid="GPU-d", utilisation=None, celsius=None)
    reading = NvmlDevices(StandInNvml([dumb])).read("GPU-d")
    assert (reading.utilisation_percent, reading.temperature_celsius) == (None, None)


def test_a_device_that_has_fallen_off_the_bus_is_named():
    library = StandInNvml([ONE], silent={ONE.uuid})
    error = refused(lambda: NvmlDevices(library).read(ONE.uuid))
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert ONE.uuid in str(error)
    assert library.num_open == 0
