"""A published version as one adapter that PEFT and inference servers load.

Rule    With (A, B) the adapter at scale s, R a core and (A_b, B_b) what was added to the base
        model, one adapter of rank r* for all modules holds [A; A_b] and [s B R, B_b] / s(r*),
        padded with zero components. Components whose column in B is zero change nothing and are
        left out.

Methods that change the base model or train a core thereby have a loadable adapter after every
round; of all others the published file is one already.
"""

from __future__ import annotations

from pathlib import Path

import torch

from aggregator_service.aggregation.adapter_file import AdapterFile, Scaling
from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.tensor_writer import TensorWriter
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part

__all__ = ["servable_rank", "write_servable"]

_OURS = (Part.CORE, Part.BASE_A, Part.BASE_B)
"""parts that PEFT does not know"""


def servable_rank(source: Path, scaling: Scaling) -> int:
    """The rank of a file that is servable as it is; 0 for one that has to be folded first."""
    with AdapterFile(source, scaling, "the adapter") as file:
        ranks = {file.rank(module) for module in file.modules}
        ours = any(part in file.parts(module) for module in file.modules for part in _OURS)
        ours = ours or bool(file.extras_of_plugins)
        return 0 if ours or len(ranks) > 1 else ranks.pop()


def write_servable(source: Path, output: Path, *, scaling: Scaling) -> int:
    """Folds everything into lora_A and lora_B of one rank, and returns that rank.

    Args:
        source: a published version.
        output: file to write.
        scaling: s of lora_B, of a rank; the file's configuration keeps lora_alpha.
    """
    with AdapterFile(source, scaling, "the adapter") as file:
        rank = max(_folded(file, module).rank for module in file.modules)
        with TensorWriter(output, {"format": "pt"}) as writer:
            for module in file.modules:
                dtype = file.raw(file.key(module, Part.A)).dtype
                publication = Publication(dtype=dtype, scaling=file.scale(module, rank))
                lora_a, lora_b = publication.stored(_folded(file, module).padded(rank))
                writer.put(file.key(module, Part.A), lora_a, dtype)
                writer.put(file.key(module, Part.B), lora_b, dtype)
                if Part.MAGNITUDE in file.parts(module):
                    key = file.key(module, Part.MAGNITUDE)
                    writer.put(key, file.raw(key), dtype)
            for key in file.saved:
                tensor = file.raw(key)
                writer.put(key, tensor, tensor.dtype)
    return rank


def _folded(file: AdapterFile, module: str) -> LoraFactors:
    """The module's whole change of the model, of rank at least 1."""
    parts = [file.factors(module)]
    if (base := file.base(module)) is not None:
        parts.append(base)
    a = torch.cat([f.a_RK for f in parts])
    b = torch.cat([f.b_DR for f in parts], dim=1)
    counts = (b != 0).any(dim=0)
    counts[0] = True
    return LoraFactors(a[counts], b[:, counts])
