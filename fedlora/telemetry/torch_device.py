"""The memory of a CUDA device as torch sees it, where nothing knows more (such as NVML)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedlora.telemetry.devices import DeviceFigures

__all__ = ["TorchDevice"]


class TorchDevice:
    """A DeviceSource of one device.

    Args:
        device: of this process; a CPU has no figures.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def read(self) -> Sequence[DeviceFigures]:
        """See DeviceSource; nothing before the process itself has begun to use CUDA."""
        # Asking would take a context's memory on a device that nothing else uses yet.
        if self._device.type != "cuda" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return ()
        free, total = torch.cuda.mem_get_info(self._device)
        properties = torch.cuda.get_device_properties(self._device)
        return (
            DeviceFigures(
                uuid=f"GPU-{properties.uuid}",
                memory_used_bytes=total - free,
                memory_total_bytes=total,
            ),
        )
