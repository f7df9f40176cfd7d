"""One process, one device: chosen before CUDA starts, verified after.

A process sees the device it was given and no other, through CUDA_VISIBLE_DEVICES. CUDA reads that
variable once, at its first call, so `resolve_device` has to come before anything that asks CUDA
for a device; importing torch is not such a thing, `torch.cuda.is_available()` may be.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from fedlora.devices import Device, Devices, NvmlDevices, find, usable
from fedlora.devices.base import VISIBLE
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Capabilities

__all__ = ["capabilities", "pinned_uuid", "resolve_device", "torch_device", "verify_device"]

_DEVICE = re.compile(r"cuda:(\d+|(?:GPU|MIG)-[0-9A-Za-z/-]+)")
_PACKAGES = ("fedlora", "torch", "transformers", "peft", "safetensors")


def resolve_device(device: str, devices: Devices | None = None) -> str:
    """Makes the named device the only one that CUDA will show to this process, by its UUID.

    Args:
        device: "cpu"; "cuda:N", the N-th of those that CUDA_VISIBLE_DEVICES leaves, or of all;
            "cuda:GPU-<uuid>" or "cuda:MIG-<uuid>", or the beginning of one; "auto", the first such
            device, or the CPU on a machine without one.
        devices: of this machine; NVML's if None.

    Returns:
        "cpu", "cuda:N" or "cuda:<uuid>": stable over restarts, different for two devices.

    Raises:
        FedLoraError: INVALID_CONFIG for another word; DEVICE_UNAVAILABLE if there is no such
            device or CUDA has started already; MISSING_EXTRA on a machine with an NVIDIA driver
            and no nvidia-ml-py.
    """
    if device not in {"auto", "cpu"} and _DEVICE.fullmatch(device) is None:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"worker.device: expected auto, cpu, cuda:N or cuda:GPU-<uuid>, got {device!r:.100}",
        )
    if device != "cpu":
        present = (devices or NvmlDevices()).present()
        left = usable(present, os.environ)
        if device == "auto":
            device = "cuda:0" if left else "cpu"
    if device == "cpu":
        os.environ[VISIBLE] = ""
        return device
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"{device} cannot be chosen: CUDA has started in this process already",
        )
    os.environ[VISIBLE] = _chosen(device, left).uuid
    return device


def pinned_uuid() -> str:
    """The UUID of the one device that CUDA may show to this process; empty for the CPU."""
    return os.environ.get(VISIBLE, "")


def verify_device() -> None:
    """Checks that CUDA shows exactly the device that `resolve_device` chose, or none for the CPU.

    Raises:
        FedLoraError: DEVICE_UNAVAILABLE naming what was expected and what is there.
    """
    wanted = pinned_uuid()
    if not wanted:
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count != 1:
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"expected the one device {wanted}, got {count} that torch {torch.__version__} can use",
            hint='Install a CUDA build of torch and the driver, or set worker.device = "cpu"',
        )
    found = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    # CUDA gives an instance of a divided GPU that GPU's UUID, or another; it shows no second one.
    if wanted.startswith("GPU-") and found != wanted:
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"expected the device {wanted}, got {found} from CUDA",
            hint=f"Something before fedlora has started CUDA: leave {VISIBLE} to the worker, and "
            "start one process a device",
        )


def torch_device(resolved: str) -> torch.device:
    """The device for torch: the process's only CUDA device has the number 0."""
    return torch.device("cpu") if resolved == "cpu" else torch.device("cuda", 0)


def capabilities() -> Capabilities:
    """What this process runs on; for a CUDA device after `resolve_device`."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    if pinned_uuid() and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        versions["cuda"] = str(torch.version.cuda)
        return Capabilities(
            device_type="cuda",
            device_name=properties.name,
            device_uuid=pinned_uuid(),
            device_memory_bytes=properties.total_memory,
            versions=versions,
        )
    return Capabilities(
        device_type="cpu",
        device_name=_cpu_name(),
        device_memory_bytes=psutil.virtual_memory().total,
        versions=versions,
    )


def _chosen(device: str, left: Sequence[Device]) -> Device:
    """The device that a number counts among those left, or that a UUID names."""
    wanted = device.removeprefix("cuda:")
    if wanted.isdigit():
        found = left[int(wanted)] if int(wanted) < len(left) else None
    else:
        found = find(left, wanted)
    if found is None:
        there = ", ".join(d.uuid for d in left) or "none"
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"there is no device {device}; this process may use {len(left)}: {there}",
            hint='Set worker.device = "cpu", or "auto" to take what there is',
        )
    return found


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
