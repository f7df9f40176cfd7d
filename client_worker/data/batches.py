"""The order in which a round sees its examples: batches of similar length, in random order.

An epoch is shuffled, cut into stretches of a few batches, and sorted by length within each: texts
of one batch then need little padding, while which texts meet still changes from epoch to epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

__all__ = ["batches_of_round", "by_length", "num_steps"]

_STRETCH = 16
"""batches within which examples are sorted by length"""


def num_steps(num_examples: int, *, batch_size: int, local_epochs: float, local_steps: int) -> int:
    """Optimiser steps of a round: local_steps, or local_epochs times the data, rounded up."""
    if local_steps:
        return local_steps
    return max(1, math.ceil(local_epochs * math.ceil(num_examples / batch_size) - 1e-9))


def batches_of_round(
    lengths: Sequence[int], *, batch_size: int, steps: int, generator: torch.Generator
) -> Iterator[list[int]]:
    """Indices of the examples of each optimiser step, epoch after epoch.

    Each epoch sees every example once; its last batch may be smaller.

    Args:
        lengths: tokens of each example; at least one example.
        batch_size: examples a step.
        steps: how many batches.
        generator: source of the order.
    """
    left = steps
    while left > 0:
        epoch = _epoch(lengths, batch_size, generator)
        yield from epoch[:left]
        left -= len(epoch)


def _epoch(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for begin in range(0, len(order), batch_size * _STRETCH):
        stretch = sorted(order[begin : begin + batch_size * _STRETCH], key=lambda i: lengths[i])
        batches += [stretch[i : i + batch_size] for i in range(0, len(stretch), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def by_length(lengths: Sequence[int], most_tokens: int) -> list[list[int]]:
    """All examples once, sorted by length: for scoring, where order does not matter.

    Args:
        lengths: tokens of each example.
        most_tokens: of a batch, padding included; a longer example has a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        # The one to come is the longest, so all are padded to its length.
        if batches and (len(batches[-1]) + 1) * lengths[i] <= most_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
