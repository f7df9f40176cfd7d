"""What a worker with the server's own data has trained, put into what a round came to.

The aggregator has no forward pass; a stage on public data is a task for a worker of the role
`server_data`. It sends the parts that the plan names, at its own rank; how they change the adapter
is the method's to say (`Method.refined`), everything else stays bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.round_context import StoredAdapter
from aggregator_service.aggregation.tensor_writer import TensorWriter
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.tensors.manifest import DataType

__all__ = ["refine"]


def refine(
    recipe: Recipe,
    *,
    combined: StoredAdapter,
    refined: StoredAdapter,
    parts: Sequence[Part],
    output: Path,
    dtype: DataType,
    device: torch.device | str = "cpu",
) -> None:
    """Writes the refined adapter.

    Args:
        recipe: what made the adapter.
        combined: what the round came to, as published.
        refined: the parts that were trained on it, with the modules trained in full.
        parts: which parts those are.
        output: file to write.
        dtype: its element type.
        device: where the arithmetic runs, in float64.
    """
    before = AdapterFile(combined.path, combined.scaling, "the version before")
    after = AdapterFile(refined.path, refined.scaling, "the refinement")
    with before, after, TensorWriter(output, {"format": "pt"}) as writer:
        for module in before.modules:
            held = before.factors(module, device)
            a, b, rank = held.a_RK, held.b_DR, after.rank(module)
            # A worker of lower rank was sent the first components, and says nothing of the others;
            # one of higher rank was sent spare ones, which are not the adapter's.
            if Part.A in parts:
                trained = after.part(module, Part.A, device)[: held.rank]
                a = torch.cat([trained, a[rank:]])
            if Part.B in parts:
                trained = after.part(module, Part.B, device)[:, : held.rank]
                b = torch.cat([trained * after.scale(module, rank), b[:, rank:]], dim=1)
            result = recipe.method.refined(held, LoraFactors(a, b))
            publication = Publication(
                dtype=dtype.torch_dtype, scaling=before.scale(module, held.rank)
            )
            lora_a, lora_b = publication.stored(result)
            made = {Part.A: lora_a, Part.B: lora_b}
            for part in sorted(before.parts(module)):
                key = before.key(module, part)
                tensor = made[part] if part in parts else before.raw(key)
                writer.put(key, tensor, tensor.dtype)
        for key in before.saved:
            stored = after.raw(key)
            writer.put(key, stored, stored.dtype)
