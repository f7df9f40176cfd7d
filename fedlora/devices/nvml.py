"""The devices as NVIDIA's management library tells of them (NVML, the package nvidia-ml-py).

NVML and not CUDA, because asking CUDA starts it: a process that has done so can no longer choose
its device, and holds memory on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedlora.devices.base import Device, Reading
from fedlora.errors import FedLoraError, Reason

__all__ = ["NvmlDevices"]

_CONTROL = Path("/dev/nvidiactl")
"""there where NVIDIA's driver is loaded"""


class NvmlDevices:
    """`Devices` of this machine.

    Args:
        nvml: the module pynvml, or what stands in for it; None imports it when it is needed.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml

    def present(self) -> tuple[Device, ...]:
        """All devices; see `Devices.present`. None on a machine without a driver.

        Raises:
            FedLoraError: MISSING_EXTRA where there is a driver and no nvidia-ml-py;
                DEVICE_UNAVAILABLE if the driver does not work.
        """
        nvml = self._module()
        if nvml is None:
            return ()
        absent = {nvml.NVML_ERROR_LIBRARY_NOT_FOUND, nvml.NVML_ERROR_DRIVER_NOT_LOADED}
        try:
            with _session(nvml):
                return tuple(
                    device
                    for index in range(nvml.nvmlDeviceGetCount())
                    for device in _devices_of(nvml, index)
                )
        except nvml.NVMLError as error:
            if error.value in absent:
                return ()
            raise _unavailable("the NVIDIA driver does not work", error) from error

    def read(self, uuid: str) -> Reading:
        """How the device with that whole UUID does; see `Devices.read`."""
        nvml = self._module()
        if nvml is None:
            raise FedLoraError(Reason.DEVICE_UNAVAILABLE, "there is no NVIDIA driver here")
        try:
            with _session(nvml):
                return _reading(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
        except nvml.NVMLError as error:
            raise _unavailable(f"the device {uuid} does not answer", error) from error

    def _module(self) -> Any:
        """pynvml; None where neither it nor a driver is there."""
        if self._nvml is not None:
            return self._nvml
        try:
            import pynvml
        except ImportError as error:
            if not _CONTROL.exists():
                return None
            raise FedLoraError(
                Reason.MISSING_EXTRA,
                "the NVIDIA devices of this machine cannot be told apart without nvidia-ml-py",
                hint="Install it with: pip install 'fedlora[gpu]'",
            ) from error
        return pynvml


@contextmanager
def _session(nvml: Any) -> Iterator[None]:
    """NVML, started; it counts how often, so sessions may lie within each other."""
    nvml.nvmlInit()
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _devices_of(nvml: Any, index: int) -> list[Device]:
    """The GPU of that number, or its instances."""
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    if not _is_divided(nvml, gpu):
        return [_device(nvml, str(index), gpu)]
    instances = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(gpu)):
        handle = _or_none(nvml, lambda: nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, place))  # noqa: B023 - called at once
        if handle is not None:
            instances.append(_device(nvml, f"{index}:{place}", handle))
    return instances


def _device(nvml: Any, number: str, handle: Any) -> Device:
    return Device(
        number=number,
        uuid=str(nvml.nvmlDeviceGetUUID(handle)),
        name=str(nvml.nvmlDeviceGetName(handle)),
    )


def _is_divided(nvml: Any, gpu: Any) -> bool:
    modes = _or_none(nvml, lambda: nvml.nvmlDeviceGetMigMode(gpu))
    return modes is not None and modes[0] == nvml.NVML_DEVICE_MIG_ENABLE


def _reading(nvml: Any, handle: Any) -> Reading:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    rates = _or_none(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
    # An instance has no sensor of its own.
    whole = _or_none(nvml, lambda: nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle))
    # The newer nvmlDeviceGetTemperatureV is not in the drivers of older machines.
    celsius = _or_none(
        nvml,
        lambda: nvml.nvmlDeviceGetTemperature(
            handle if whole is None else whole, nvml.NVML_TEMPERATURE_GPU
        ),
    )
    return Reading(
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        utilisation_percent=None if rates is None else int(rates.gpu),
        temperature_celsius=None if celsius is None else int(celsius),
    )


def _or_none(nvml: Any, ask: Callable[[], Any]) -> Any:
    """The answer; None where the device has nothing of the kind."""
    try:
        return ask()
    except nvml.NVMLError as error:
        lacking = {
            nvml.NVML_ERROR_NOT_SUPPORTED,
            nvml.NVML_ERROR_NOT_FOUND,
            nvml.NVML_ERROR_INVALID_ARGUMENT,
        }
        if error.value in lacking:
            return None
        raise


def _unavailable(what: str, error: Exception) -> FedLoraError:
    return FedLoraError(
        Reason.DEVICE_UNAVAILABLE, f"{what}: {error}", hint="`nvidia-smi` says more"
    )
