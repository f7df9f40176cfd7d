"""The memory of a CUDA device as torch sees it, where nothing knows more (such as NVML)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from fedlora.devices import Reading

__all__ = ["torch_readings"]


def torch_readings(device: torch.device) -> Mapping[str, Reading]:
    """How a device of this process does, by its UUID.

    Nothing of a CPU, and nothing before the process itself has begun to use CUDA.
    """
    # Asking would take a context's memory on a device that nothing else uses yet.
    if device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    free, total = torch.cuda.mem_get_info(device)
    reading = Reading(
        memory_used_bytes=total - free,
        memory_total_bytes=total,
        utilisation_percent=None,
        temperature_celsius=None,
    )
    return {f"GPU-{torch.cuda.get_device_properties(device).uuid}": reading}
