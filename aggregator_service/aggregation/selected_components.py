"""Which of an adapter's rank-one components an update holds, where workers choose among them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason

__all__ = ["check_selections", "selected_components"]


def check_selections(path: Path, rank: int, owner: str) -> None:
    """Refuses an update of chosen components whose masks do not fit its factors.

    A manifest tells shapes, not which components they stand for.

    Args:
        path: the update's file.
        rank: of the adapter that the worker was given.
        owner: the worker, for messages.

    Raises:
        FedLoraError: INVALID_PAYLOAD.
    """
    with AdapterFile(path, 1.0, owner) as file:
        for module in file.modules:
            selected_components(file, module, rank)


def selected_components(file: AdapterFile, module: str, rank: int) -> Tensor:
    """Indices of the components that an update of chosen components holds.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a mask that is none, or that does not fit the factors
            beside it.
    """

    def refuse(text: str) -> FedLoraError:
        return FedLoraError(Reason.INVALID_PAYLOAD, f"{file.owner}: module {module!r}: {text}")

    if Part.SELECTED not in file.parts(module):
        raise refuse("expected a mask of the components sent, got none")
    mask = file.part(module, Part.SELECTED)
    if mask.shape != (rank,) or not bool(((mask == 0) | (mask == 1)).all()):
        raise refuse(f"expected a mask of {rank} zeros and ones, got {mask.tolist()[:64]}")
    chosen: Tensor = mask.nonzero().flatten()
    for part, axis in ((Part.A, 0), (Part.B, 1)):
        held = file.shape(module, part)[axis] if part in file.parts(module) else 0
        if part in file.parts(module) and held != len(chosen):
            raise refuse(f"the mask names {len(chosen)} components, {part.value} has {held}")
    if len(chosen) and not {Part.A, Part.B} & {*file.parts(module)}:
        raise refuse(f"the mask names {len(chosen)} components, and no factor is there")
    return chosen
