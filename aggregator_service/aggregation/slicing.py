"""The copy of a published adapter that one worker is sent: at its rank, and only what it lacks.

Rule    A' = A[:r'],  B' = B[:, :r'] * s(r) / s(r'), so that the product of the kept components is
        served unchanged under the lower rank's own scaling; a core keeps its leading block. A
        module of lower rank than r' gets spare components: random rows in A, zeros in B.
Bias    optimal for an adapter whose components are ordered by singular value (`optimal`, and the
        gauges that sort: Eckart-Young at every rank at once); otherwise HetLoRA's convention of
        keeping the first components (Cho et al. 2024, arXiv:2401.06432).

Whoever needs to know what a worker was given computes it here again, rounding included.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import torch
from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile, Scaling
from aggregator_service.aggregation.spare_components import filled
from aggregator_service.aggregation.tensor_writer import TensorWriter
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part, parse_key
from fedlora.runs.seeds import derive_seed

__all__ = ["given_factors", "given_shape", "given_tensor", "is_at_rank", "slice_adapter"]

_RANK_AXES: Mapping[Part, tuple[int, ...]] = {Part.A: (0,), Part.B: (1,), Part.CORE: (0, 1)}
"""where the rank stands in a part's shape"""


def is_at_rank(file: AdapterFile, rank: int) -> bool:
    """Whether every module has that rank already."""
    return all(file.rank(module) == rank for module in file.modules)


def slice_adapter(
    source: Path,
    output: Path,
    *,
    rank: int,
    scaling: Scaling,
    parts: Container[Part] = frozenset(Part),
) -> None:
    """Writes a worker's copy of the adapter `source` to `output`.

    Args:
        source: a published version.
        output: file to write.
        rank: of every module of the copy.
        scaling: s of lora_B as readers of the source fold it.
        parts: those to write; modules trained in full are always written, and so is what plug-ins
            have put beside the adapter.
    """
    metadata = {"format": "pt"}
    with AdapterFile(source, scaling, "the adapter") as file, TensorWriter(output, metadata) as out:
        for module in file.modules:
            held = _at_rank(file, module, rank)
            for part in sorted(file.parts(module)):
                if part in parts:
                    tensor = held.get(part)
                    stored = file.raw(file.key(module, part)) if tensor is None else tensor
                    out.put(file.key(module, part), stored, stored.dtype)
        for key in (*file.saved, *file.extras_of_plugins):
            stored = file.raw(key)
            out.put(key, stored, stored.dtype)


def given_factors(
    file: AdapterFile, module: str, rank: int, device: torch.device | str = "cpu"
) -> LoraFactors:
    """What a worker of that rank was given of a module: float64, scale and core folded into B."""
    held = _at_rank(file, module, rank)
    a, b = (held[part].to(device=device, dtype=torch.float64) for part in (Part.A, Part.B))
    if Part.CORE in held:
        b = b @ held[Part.CORE].to(device=device, dtype=torch.float64)
    return LoraFactors.fold(a, b, file.scale(module, rank))


def given_shape(file: AdapterFile, key: str, rank: int) -> tuple[int, ...]:
    """Shape of a tensor of the adapter as a worker of that rank was given it."""
    part = parse_key(key).part
    axes = _RANK_AXES.get(part, ()) if part else ()
    return tuple(rank if axis in axes else size for axis, size in enumerate(file.shapes[key]))


def given_tensor(file: AdapterFile, key: str, rank: int) -> Tensor:
    """A tensor of the adapter as a worker of that rank was given it, in the file's dtype."""
    parsed = parse_key(key)
    if parsed.part is None or parsed.part not in _RANK_AXES or file.rank(parsed.path) == rank:
        return file.raw(key)
    return _at_rank(file, parsed.path, rank)[parsed.part]


def _at_rank(file: AdapterFile, module: str, rank: int) -> dict[Part, Tensor]:
    """The parts that depend on the rank, in the file's element type."""
    own = file.rank(module)
    held: dict[Part, Tensor] = {
        part: file.raw(file.key(module, part))
        for part in (Part.A, Part.B, Part.CORE)
        if part in file.parts(module)
    }
    if own == rank:
        return held
    dtype = held[Part.A].dtype
    rescale = file.scale(module, own) / file.scale(module, rank)
    lora_b = (held[Part.B][:, :rank].double() * rescale).to(dtype)
    if own < rank:
        generator = torch.Generator().manual_seed(derive_seed(0, "spare", module))
        wide = filled(LoraFactors(held[Part.A], lora_b), rank, generator)
        held[Part.A], held[Part.B] = wide.a_RK, wide.b_DR
    else:
        held[Part.A], held[Part.B] = held[Part.A][:rank].contiguous(), lora_b.contiguous()
    if Part.CORE in held:
        # Only a method with one rank for all publishes cores, so there is nothing to pad.
        held[Part.CORE] = held[Part.CORE][:rank, :rank].contiguous()
    return held
