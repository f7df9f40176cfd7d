"""A device with little memory, stood in for on the CPU: passes above a size find no memory.

As on a real device, the error comes when much of the pass has been computed: after dropout has
drawn its numbers, and in the backward pass once part of the step's gradient has been added.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["SmallDevice", "small_device"]


@dataclass
class SmallDevice:
    """What went on in the model's passes."""

    refused: list[tuple[int, int]] = field(default_factory=list)
    """rows and tokens a row of the passes that found no memory"""
    fitted: list[tuple[int, int]] = field(default_factory=list)
    """the same of those that did"""
    leaked: int = 0
    """passes at whose beginning results of one that had failed were still held"""
    _left: list[weakref.ref[torch.Tensor]] = field(default_factory=list)


@contextmanager
def small_device(
    model: nn.Module, has_room: Callable[[int, int], bool], *, in_backward: bool = False
) -> Iterator[SmallDevice]:
    """Inside, `model` finds memory only for passes of which `has_room(rows, tokens)` says so."""
    device = SmallDevice()

    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nAnd much else.")

    def before(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
        while in_its_backward:
            in_its_backward.pop().remove()
        device.leaked += any(left() is not None for left in device._left)
        device._left.clear()

    def after(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        rows, tokens = kwargs["input_ids"].shape
        if has_room(rows, tokens):
            device.fitted.append((rows, tokens))
            return
        device.refused.append((rows, tokens))
        device._left.append(weakref.ref(output.logits))
        if not in_backward:
            out_of_memory()
        # Of the first layer, so asked for when the gradients of the others have been added.
        first = next(p for p in model.parameters() if p.requires_grad)
        in_its_backward.append(first.register_hook(out_of_memory))

    in_its_backward: list[Any] = []
    handles = [
        model.register_forward_pre_hook(before, with_kwargs=True),
        model.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield device
    finally:
        for handle in handles + in_its_backward:
            handle.remove()
