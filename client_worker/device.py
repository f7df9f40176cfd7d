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
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Capabilities

__all__ = ["capabilities", "resolve_device", "torch_device", "verify_device"]

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_DEVICE = re.compile(r"cuda:(\d+|(?:GPU|MIG)-[0-9A-Za-z/-]+)")
_UUID = re.compile(r"(?:GPU|MIG)-.+")
_PACKAGES = ("fedlora", "torch", "transformers", "peft", "safetensors")


def resolve_device(device: str) -> str:
    """Makes the named device the only one that CUDA will show to this process.

    Args:
        device: "cpu"; "cuda:N", the N-th of those that CUDA_VISIBLE_DEVICES leaves, or of all;
            "cuda:GPU-<uuid>" or "cuda:MIG-<uuid>"; "auto", the first such device, or the CPU on a
            machine without one.

    Returns:
        "cpu", "cuda:N" or "cuda:<uuid>": stable over restarts, different for two devices.

    Raises:
        FedLoraError: INVALID_CONFIG for another word; DEVICE_UNAVAILABLE if there is no such
            device or CUDA has started already; MISSING_EXTRA for "auto" on a machine with an
            NVIDIA driver and no nvidia-ml-py.
    """
    if device == "auto":
        device = "cuda:0" if _candidates() else "cpu"
    if device == "cpu":
        os.environ[_VISIBLE] = ""
        return device
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"worker.device: expected auto, cpu, cuda:N or cuda:GPU-<uuid>, got {device!r:.100}",
        )
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"{device} cannot be chosen: CUDA has started in this process already",
        )
    os.environ[_VISIBLE] = _physical(match[1])
    return device


def verify_device() -> None:
    """Checks that CUDA shows exactly the device that `resolve_device` chose, or none for the CPU.

    Raises:
        FedLoraError: DEVICE_UNAVAILABLE naming what was expected and what is there.
    """
    wanted = os.environ.get(_VISIBLE, "")
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
    if wanted.startswith("GPU-") and not found.startswith(wanted):
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE, f"expected the device {wanted}, got {found} from CUDA"
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
    if os.environ.get(_VISIBLE) and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        versions["cuda"] = str(torch.version.cuda)
        return Capabilities(
            device_type="cuda",
            device_name=properties.name,
            device_uuid=f"GPU-{properties.uuid}",
            device_memory_bytes=properties.total_memory,
            versions=versions,
        )
    return Capabilities(
        device_type="cpu",
        device_name=_cpu_name(),
        device_memory_bytes=psutil.virtual_memory().total,
        versions=versions,
    )


def _physical(wanted: str) -> str:
    """The entry of CUDA_VISIBLE_DEVICES for a number or UUID."""
    if _UUID.fullmatch(wanted):
        return wanted
    index, candidates = int(wanted), _candidates()
    if index >= len(candidates):
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"there is no device cuda:{index}: {len(candidates)} CUDA devices are visible",
            hint='Set worker.device = "cpu", or "auto" to take what there is',
        )
    return candidates[index]


def _candidates() -> list[str]:
    """Entries for CUDA_VISIBLE_DEVICES that this process may choose from."""
    inherited = os.environ.get(_VISIBLE)
    if inherited is not None:
        entries = [entry.strip() for entry in inherited.split(",")]
        # CUDA stops reading at the first entry that is no device.
        stop = next((i for i, e in enumerate(entries) if e in ("", "-1")), len(entries))
        return entries[:stop]
    return _nvml_uuids()


def _nvml_uuids() -> list[str]:
    """UUIDs of all devices, in the order of the PCI bus; none without a driver."""
    try:
        import pynvml
    except ImportError as error:
        if not Path("/dev/nvidiactl").exists():
            return []
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            "the NVIDIA devices of this machine cannot be told apart without nvidia-ml-py",
            hint="Install it with: pip install 'fedlora[worker]'",
        ) from error
    nvml: Any = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        return [str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    finally:
        nvml.nvmlShutdown()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
