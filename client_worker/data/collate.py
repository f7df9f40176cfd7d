"""Encoded examples become tensors: one row each and padding, or several to a row.

For a causal LM the targets are moved one place to the left here: the target of position t is the
token at t + 1, so that the loss is a plain cross-entropy and no example's first token is ever
asked of the one before it in a packed row.

Shape suffixes: B rows, T tokens, E examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client_worker.data.encoding import IGNORED, EncodedExample

__all__ = ["Batch", "pack", "pad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One forward pass."""

    inputs: Mapping[str, Tensor]
    """keyword arguments of the model, each B x T"""
    targets: Tensor
    """B labels, or B x T tokens with IGNORED where there is no loss"""
    num_examples: int

    @property
    def num_targets(self) -> int:
        """Targets that the loss is a mean over: labels, or tokens with loss."""
        return int((self.targets != IGNORED).sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            inputs={name: tensor.to(device) for name, tensor in self.inputs.items()},
            targets=self.targets.to(device),
            num_examples=self.num_examples,
        )


def pad(examples: Sequence[EncodedExample], *, pad_id: int, per_token: bool) -> Batch:
    """One row for each example, padded on the right to the longest.

    Args:
        examples: at least one.
        pad_id: token to pad with; masked.
        per_token: targets are tokens (causal LM), not labels.
    """
    width = max(e.num_tokens for e in examples)
    ids_BT = torch.full((len(examples), width), pad_id)
    mask_BT = torch.zeros((len(examples), width), dtype=torch.long)
    targets_BT = torch.full((len(examples), width), IGNORED)
    for row, example in enumerate(examples):
        ids_BT[row, : example.num_tokens] = torch.tensor(example.input_ids)
        mask_BT[row, : example.num_tokens] = 1
        if per_token:
            targets_BT[row, : example.num_tokens] = _next_tokens(example)
    labels_B = torch.tensor([e.targets[0] for e in examples])
    return Batch(
        inputs={"input_ids": ids_BT, "attention_mask": mask_BT},
        targets=targets_BT if per_token else labels_B,
        num_examples=len(examples),
    )


def pack(examples: Sequence[EncodedExample], *, pad_id: int, max_tokens: int) -> Batch:
    """Several examples to a row, first fit by falling length.

    Positions start again at 0 with each example, padding included, and there is no attention mask:
    that is how transformers' decoders are told to keep attention within each example
    (`client_worker.adaptation.packing` checks that a model does).

    Args:
        examples: at least one, none longer than `max_tokens`.
        pad_id: token to pad with.
        max_tokens: largest row.
    """
    rows: list[list[EncodedExample]] = []
    free: list[int] = []
    for example in sorted(examples, key=lambda e: -e.num_tokens):
        row = next((i for i, space in enumerate(free) if space >= example.num_tokens), None)
        if row is None:
            row = len(rows)
            rows.append([])
            free.append(max_tokens)
        rows[row].append(example)
        free[row] -= example.num_tokens
    width = max_tokens - min(free)
    ids_BT = torch.full((len(rows), width), pad_id)
    targets_BT = torch.full((len(rows), width), IGNORED)
    positions_BT = torch.zeros((len(rows), width), dtype=torch.long)
    for row, members in enumerate(rows):
        begin = 0
        for example in members:
            end = begin + example.num_tokens
            ids_BT[row, begin:end] = torch.tensor(example.input_ids)
            targets_BT[row, begin:end] = _next_tokens(example)
            positions_BT[row, begin:end] = torch.arange(example.num_tokens)
            begin = end
        positions_BT[row, begin:] = torch.arange(width - begin)
    return Batch(
        inputs={"input_ids": ids_BT, "position_ids": positions_BT},
        targets=targets_BT,
        num_examples=len(examples),
    )


def _next_tokens(example: EncodedExample) -> Tensor:
    """The target of each position: the token after it; none for the last."""
    return torch.tensor([*example.targets[1:], IGNORED])
