"""How many examples one forward pass takes, and what becomes of work for which they are too many.

A training step that finds no memory on the device is undone and done again in passes of half as
many examples, down to one. The step's gradient is the same sum, however it is cut
(`client_worker.training.loop`), so the batch that the optimiser sees stays as the run has it; and
since gradients and random numbers are put back to where the step began, it has the bits of a step
in passes of that size from the start. The smaller size is kept for what follows, in later rounds
too: a device that had no room once has none the next time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
import torch
from torch import nn

from client_worker.training.precision import Precision
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.training import TrainingSpec

__all__ = ["MicroBatch", "in_parts"]

log = structlog.get_logger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")


class MicroBatch:
    """The size of a worker's forward passes while it trains.

    Attributes:
        most: what the device has room for; None until it had none.
    """

    def __init__(self) -> None:
        self.most: int | None = None

    def size(self, spec: TrainingSpec) -> int:
        """Examples a pass: what the run asks for, or what there is room for."""
        wanted = spec.micro_batch_size or spec.batch_size
        return wanted if self.most is None else min(wanted, self.most)

    def fitting(
        self, step: Callable[[int], T], size: int, *, model: nn.Module, precision: Precision
    ) -> T:
        """What a step's passes come to, in passes that the device has room for.

        Args:
            step: forward and backward passes of the size given. It may change nothing but
                gradients and the states of random generators.
            size: examples a pass, to begin with.
            model: without gradients; those of a step that failed are thrown away.
            precision: of the device.

        Raises:
            FedLoraError: DEVICE_OUT_OF_MEMORY if there is no room for one example.
        """
        generators = precision.generators()
        while True:
            try:
                return step(size)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise _no_room(error) from None
            # Not before here: the exception holds on to the activations of the pass that failed.
            model.zero_grad(set_to_none=True)
            precision.release_memory()
            precision.restore(generators)
            self.most = size // 2
            log.warning("micro_batch_halved", examples_before=size, examples=self.most)
            size = self.most


def in_parts(
    compute: Callable[[Sequence[Item]], T], items: Sequence[Item], *, precision: Precision
) -> list[T]:
    """`compute` of all items at once; of each half, and so on, where the device has no room.

    For passes that keep nothing but their result, as in scoring.

    Raises:
        FedLoraError: DEVICE_OUT_OF_MEMORY if there is no room for one item.
    """
    try:
        return [compute(items)]
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise _no_room(error) from None
    precision.release_memory()
    middle = len(items) // 2
    return [
        result
        for half in (items[:middle], items[middle:])
        for result in in_parts(compute, half, precision=precision)
    ]


def _no_room(error: torch.OutOfMemoryError) -> FedLoraError:
    said = str(error).partition("\n")[0]
    return FedLoraError(
        Reason.DEVICE_OUT_OF_MEMORY,
        f"the device has no memory for a pass of one example: {said[:300]}",
        hint="Lower training.max_sequence_tokens, set training.gradient_checkpointing = true or "
        'model.quantization = "nf4", or give the worker a larger device',
    )
