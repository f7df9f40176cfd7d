"""How much memory a worker's device has free: of a GPU, or of this machine for this process."""

from __future__ import annotations

import psutil
import torch

from fedlora.process_limits import group_memory

__all__ = ["free_bytes"]


def free_bytes(device: str) -> int:
    """Bytes that may still be taken.

    Args:
        device: as `client_worker.device.resolve_device` returned it.
    """
    if device != "cpu":
        free, _ = torch.cuda.mem_get_info(0)
        return int(free)
    machine = int(psutil.virtual_memory().available)
    return min([machine, *(group.left_bytes for group in group_memory())])
