"""Codes of less than eight bits, side by side in bytes; the first in the lowest bits."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["filled_up", "packed", "unpacked"]


def filled_up(x: Tensor, multiple: int) -> Tensor:
    """The tensor with zeros behind, so that a multiple of that divides its last dimension."""
    missing = -x.shape[-1] % multiple
    return torch.cat([x, x.new_zeros(*x.shape[:-1], missing)], dim=-1) if missing else x


def packed(codes: Tensor, bits: int) -> Tensor:
    """Bytes of codes below 2^bits, row by row; the last byte of a row is filled up with zeros."""
    per_byte = 8 // bits
    grouped = filled_up(codes.to(torch.uint8), per_byte)
    grouped = grouped.reshape(*codes.shape[:-1], -1, per_byte)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    return (grouped << shifts).sum(dim=-1, dtype=torch.uint8)


def unpacked(data: Tensor, bits: int) -> Tensor:
    """The codes, and the zeros behind them."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    codes: Tensor = (data.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return codes.flatten(start_dim=-2)
