"""Checks that a model keeps packed examples apart before any training relies on it."""

from __future__ import annotations

import torch
from torch import nn

from fedlora.errors import FedLoraError, Reason

__all__ = ["require_exact_packing"]

_TOKENS = 6
# Two orders above float32's rounding in a deep model, far below what one leaked token does.
_RELATIVE_TOLERANCE = 1e-3


@torch.no_grad()
def require_exact_packing(model: nn.Module, vocab_size: int) -> None:
    """Compares the logits of two sequences in one row with those of the second alone.

    Args:
        model: a causal LM in evaluation mode, in float32, that keeps no cache.
        vocab_size: size of its vocabulary.

    Raises:
        FedLoraError: INVALID_MODEL if the first sequence shows in the second's logits.
    """
    device = next(model.parameters()).device
    ids_1T = (torch.arange(2 * _TOKENS, device=device) * 7 % vocab_size)[None]
    positions_1T = torch.arange(_TOKENS, device=device).repeat(2)[None]
    packed = model(input_ids=ids_1T, position_ids=positions_1T).logits
    alone = model(input_ids=ids_1T[:, _TOKENS:]).logits
    error = float((packed[:, _TOKENS:] - alone).abs().max() / alone.abs().max())
    if not error <= _RELATIVE_TOLERANCE:
        raise FedLoraError(
            Reason.INVALID_MODEL,
            "training.packing: this base model lets attention cross from one packed example into "
            f"the next (relative difference of logits {error:.2g})",
            hint="Set training.packing = false",
        )
