"""The two factors of one module's LoRA update, with the scale already in B."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.errors import FedLoraError, Reason

__all__ = ["LoraFactors"]


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """delta weight = b_DR @ a_RK, with serving scale 1.

    PEFT computes s * lora_B @ lora_A. Here s is folded into B, once, before anything else
    (`fold`), so that no formula downstream holds a scale: a mean of lora_B over clients of
    different lora_alpha or r would mean nothing.

    Shape suffixes: R rank, K in_features, D out_features.

    Raises:
        FedLoraError: INVALID_ARGUMENT unless both are floating matrices of one dtype, on one
            device, that can be multiplied.
    """

    a_RK: Tensor
    b_DR: Tensor

    def __post_init__(self) -> None:
        a, b = self.a_RK, self.b_DR
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] < 1:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "expected lora_A of rank x in_features and lora_B of out_features x rank, "
                f"got {list(a.shape)} and {list(b.shape)}",
            )
        if a.dtype != b.dtype or not a.is_floating_point() or a.device != b.device:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "expected lora_A and lora_B in one floating dtype on one device, "
                f"got {a.dtype} on {a.device} and {b.dtype} on {b.device}",
            )

    @classmethod
    def fold(cls, lora_A: Tensor, lora_B: Tensor, scaling: float) -> LoraFactors:
        """Folds `scaling` (PEFT's s, lora_alpha / r or lora_alpha / sqrt(r)) into lora_B."""
        return cls(lora_A, lora_B * scaling)

    @property
    def rank(self) -> int:
        """Number of components, R."""
        return self.a_RK.shape[0]

    @property
    def in_features(self) -> int:
        """K."""
        return self.a_RK.shape[1]

    @property
    def out_features(self) -> int:
        """D."""
        return self.b_DR.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Element type of both factors."""
        return self.a_RK.dtype

    def to(self, dtype: torch.dtype) -> LoraFactors:
        """The factors in another element type."""
        return LoraFactors(self.a_RK.to(dtype), self.b_DR.to(dtype))

    def padded(self, rank: int) -> LoraFactors:
        """The same product at a higher rank: rows of zeros below A, columns of zeros after B."""
        if rank == self.rank:
            return self
        more = rank - self.rank
        return LoraFactors(
            torch.cat([self.a_RK, self.a_RK.new_zeros(more, self.in_features)]),
            torch.cat([self.b_DR, self.b_DR.new_zeros(self.out_features, more)], dim=1),
        )

    def delta_weight(self) -> Tensor:
        """B A, D x K: for tests and small layers only."""
        return self.b_DR @ self.a_RK
