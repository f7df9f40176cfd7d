"""NVIDIA's management library as pynvml shows it, of a machine that a test describes.

Whole processes get it too: `stand_in/pynvml.py`, found through PYTHONPATH, is such a module.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace

__all__ = ["Gpu", "StandInNvml", "environment", "from_environment"]

VARIABLE = "STAND_IN_NVML"
STAND_IN = Path(__file__).parent / "stand_in"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU; with instances it is divided. A figure of None is one that it does not tell."""

    uuid: str
    name: str = "NVIDIA H"
    used: int = 1 << 30
    total: int = 4 << 30
    utilisation: int | None = 50
    celsius: int | None = 40
    instances: Sequence[str] = ()
    """UUIDs; an empty one is a place that is not taken"""


@dataclass
class StandInNvml:
    """The functions of pynvml that fedlora calls."""

    gpus: Sequence[Gpu]
    init_error: int = 0
    silent: set[str] = field(default_factory=set)
    """UUIDs that have fallen off the bus"""
    num_open: int = 0

    NVML_ERROR_UNINITIALIZED = 1
    NVML_ERROR_INVALID_ARGUMENT = 2
    NVML_ERROR_NOT_SUPPORTED = 3
    NVML_ERROR_NOT_FOUND = 6
    NVML_ERROR_DRIVER_NOT_LOADED = 9
    NVML_ERROR_LIBRARY_NOT_FOUND = 12
    NVML_ERROR_GPU_IS_LOST = 15
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18
    NVML_DEVICE_MIG_ENABLE = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As pynvml's, which carries a number."""

        def __init__(self, value: int) -> None:
            super().__init__(f"NVML error {value}")
            self.value = value

    def nvmlInit(self) -> None:
        if self.init_error:
            raise self.NVMLError(self.init_error)
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._started()
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[Gpu, str]:
        self._started()
        return self.gpus[index], self.gpus[index].uuid

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[Gpu, str]:
        self._started()
        if uuid in self.silent:
            raise self.NVMLError(self.NVML_ERROR_GPU_IS_LOST)
        for gpu in self.gpus:
            if uuid in (gpu.uuid, *gpu.instances):
                return gpu, uuid
        raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)

    def nvmlDeviceGetUUID(self, handle: tuple[Gpu, str]) -> str:
        return handle[1]

    def nvmlDeviceGetName(self, handle: tuple[Gpu, str]) -> str:
        return handle[0].name if handle[1] == handle[0].uuid else f"{handle[0].name} MIG"

    def nvmlDeviceGetMigMode(self, handle: tuple[Gpu, str]) -> list[int]:
        if not handle[0].instances:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return [self.NVML_DEVICE_MIG_ENABLE, self.NVML_DEVICE_MIG_ENABLE]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: tuple[Gpu, str]) -> int:
        return len(handle[0].instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(
        self, handle: tuple[Gpu, str], index: int
    ) -> tuple[Gpu, str]:
        if not handle[0].instances[index]:
            raise self.NVMLError(self.NVML_ERROR_NOT_FOUND)
        return handle[0], handle[0].instances[index]

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(
        self, handle: tuple[Gpu, str]
    ) -> tuple[Gpu, str]:
        if handle[1] == handle[0].uuid:
            raise self.NVMLError(self.NVML_ERROR_INVALID_ARGUMENT)
        return handle[0], handle[0].uuid

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[Gpu, str]) -> SimpleNamespace:
        return SimpleNamespace(used=handle[0].used, total=handle[0].total)

    def nvmlDeviceGetUtilizationRates(self, handle: tuple[Gpu, str]) -> SimpleNamespace:
        # An instance tells none.
        whole = handle[1] == handle[0].uuid
        return SimpleNamespace(gpu=self._figure(handle[0].utilisation if whole else None))

    def nvmlDeviceGetTemperature(self, handle: tuple[Gpu, str], _sensor: int) -> int:
        return self._figure(handle[0].celsius if handle[1] == handle[0].uuid else None)

    def _figure(self, value: int | None) -> int:
        self._started()
        if value is None:
            raise self.NVMLError(self.NVML_ERROR_NOT_SUPPORTED)
        return value

    def _started(self) -> None:
        if self.num_open < 1:
            raise self.NVMLError(self.NVML_ERROR_UNINITIALIZED)


def environment(gpus: Sequence[Gpu]) -> dict[str, str]:
    """Variables with which a Python process finds these GPUs."""
    paths = [str(STAND_IN), *filter(None, [os.environ.get("PYTHONPATH")])]
    described = json.dumps([asdict(gpu) for gpu in gpus])
    return {VARIABLE: described, "PYTHONPATH": os.pathsep.join(paths)}


def from_environment(environ: Mapping[str, str]) -> StandInNvml:
    """The library of a process that was given `environment`."""
    return StandInNvml([Gpu(**described) for described in json.loads(environ[VARIABLE])])
