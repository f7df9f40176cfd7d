"""The leading components of an adapter, for a worker of lower rank.

Rule    A' = A[:r'],  B' = B[:, :r'] * s(r) / s(r'), so that the product of the kept components is
        served unchanged under the lower rank's own scaling.
Bias    optimal for an adapter whose components are ordered by singular value (`optimal`, balanced
        gauge: Eckart-Young at every rank at once); otherwise HetLoRA's convention of keeping the
        first components (Cho et al. 2024, arXiv 2401.06432).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fedlora.adapters.names import Factor, parse_key

__all__ = ["slice_rank"]


def slice_rank(source: Path, output: Path, *, rank: int, rescale: float) -> None:
    """Writes the first `rank` components of the adapter `source` to `output`.

    Args:
        source: safetensors file with PEFT keys, rank x in and out x rank factors.
        output: file to write.
        rank: components to keep, at most the source's.
        rescale: factor on lora_B, s(source rank) / s(rank).
    """
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(source, framework="pt") as file:
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key)
            factor = parse_key(key).factor
            if factor is Factor.LORA_A:
                tensor = tensor[:rank].contiguous()
            elif factor is Factor.LORA_B:
                tensor = (tensor[:, :rank].double() * rescale).to(tensor.dtype).contiguous()
            tensors[key] = tensor
    save_file(tensors, output, metadata={"format": "pt"})
