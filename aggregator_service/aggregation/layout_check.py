"""Whether the adapters of a cohort fit together, layer by layer."""

from __future__ import annotations

from aggregator_service.aggregation.adapter_file import AdapterFile
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason

__all__ = ["check_layout"]


def check_layout(first: AdapterFile, other: AdapterFile) -> None:
    """Refuses adapters that are not of one base model and the same layers; ranks may differ.

    Raises:
        FedLoraError: LAYOUT_MISMATCH.
    """

    def refuse(what: str) -> FedLoraError:
        return FedLoraError(
            Reason.LAYOUT_MISMATCH,
            f"{first.owner} and {other.owner} adapt different layers: {what}",
            hint="Updates can be combined only for one base model and the same target_modules",
        )

    if first.is_hira != other.is_hira and any(Part.A in other.parts(m) for m in other.modules):
        raise refuse("one is LoRA, the other HiRA")
    if _is_dora(first) != _is_dora(other):
        raise refuse("one is DoRA, the other has no magnitudes")
    if different := sorted({*first.modules} ^ {*other.modules}):
        holder = first if different[0] in first.modules else other
        raise refuse(f"module {different[0]!r} is in {holder.owner} only")
    for module in first.modules:
        for part, axis in ((Part.A, 1), (Part.B, 0), (Part.MAGNITUDE, 0)):
            if part not in first.parts(module) or part not in other.parts(module):
                continue
            if first.shape(module, part)[axis] != other.shape(module, part)[axis]:
                mine, theirs = (_words(f, module) for f in (first, other))
                raise refuse(f"module {module!r} is {mine} in one and {theirs} in the other")
    if different := sorted({*first.saved} ^ {*other.saved}):
        holder = first if different[0] in first.saved else other
        raise refuse(f"tensor {different[0]!r} is in {holder.owner} only")
    for key in first.saved:
        if first.shapes[key] != other.shapes[key]:
            raise refuse(
                f"tensor {key!r} is {list(first.shapes[key])} in one and "
                f"{list(other.shapes[key])} in the other"
            )


def _is_dora(file: AdapterFile) -> bool:
    return any(Part.MAGNITUDE in file.parts(module) for module in file.modules)


def _words(file: AdapterFile, module: str) -> str:
    """Out x in of a module, with a question mark for what the file does not say."""
    parts = file.parts(module)
    rows = file.shape(module, Part.B)[0] if Part.B in parts else "?"
    columns = file.shape(module, Part.A)[1] if Part.A in parts else "?"
    return f"{rows}x{columns}"
