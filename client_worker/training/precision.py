"""Where and in which precision a model computes.

Weights are float32 everywhere. The arithmetic of matrices is what the run says; left to the device
it is bfloat16 on CUDA where the device has it, else float16 with a scaled loss, and float32
on a CPU.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.training import ComputePrecision

__all__ = ["Precision"]


_DTYPES = {
    ComputePrecision.F32: None,
    ComputePrecision.BF16: torch.bfloat16,
    ComputePrecision.F16: torch.float16,
}


@dataclass(frozen=True, slots=True)
class Precision:
    """Device and autocast type."""

    device: torch.device
    autocast_dtype: torch.dtype | None
    """None for float32"""

    @classmethod
    def of(
        cls, device: torch.device, wanted: ComputePrecision = ComputePrecision.AUTO
    ) -> Precision:
        """The policy for a device.

        Raises:
            FedLoraError: INVALID_CONFIG for arithmetic that the device does not have.
        """
        has_cuda = device.type == "cuda"
        has_bf16 = not has_cuda or torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted is ComputePrecision.AUTO:
            if not has_cuda:
                return cls(device, None)
            return cls(device, torch.bfloat16 if has_bf16 else torch.float16)
        if (wanted is ComputePrecision.BF16 and not has_bf16) or (
            wanted is ComputePrecision.F16 and not has_cuda
        ):
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f'training.precision is "{wanted.value}", which the device {device} cannot compute',
                hint='Set training.precision = "auto", and each device computes in what it has',
            )
        return cls(device, _DTYPES[wanted])

    def autocast(self) -> AbstractContextManager[object]:
        """Around forward passes."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss where gradients would underflow; does nothing elsewhere."""
        needed = self.autocast_dtype is torch.float16
        return torch.amp.GradScaler(self.device.type, enabled=needed)

    def generators(self) -> tuple[torch.Tensor, ...]:
        """The states of torch's global generators: the CPU's, and the device's if it is another."""
        if self.device.type != "cuda":
            return (torch.get_rng_state(),)
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device)

    def restore(self, generators: tuple[torch.Tensor, ...]) -> None:
        """Puts the generators back to what `generators` returned."""
        torch.set_rng_state(generators[0])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(generators[1], self.device)

    def release_memory(self) -> None:
        """Gives unused memory back to the device, so that what comes need not fit its pieces."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def forget_peak(self) -> None:
        """Starts a new measurement of `peak_bytes`."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """Most memory in use, in bytes.

        On CUDA by tensors since `forget_peak`; on the CPU by the process since it began.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024  # kibibytes on Linux
