"""The fingerprint of a base model: equal for two workers exactly if their frozen weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from fedlora.adapters.names import is_inside

__all__ = ["fingerprint"]


def fingerprint(state: Mapping[str, Tensor], *, trained: Collection[str]) -> str:
    """`sha256:...` over the sorted (name, dtype, shape, SHA-256 of the bytes) of a state dict.

    The digests of single tensors are taken in parallel: hashlib lets other threads run.

    Args:
        state: the base model's state dict, before an adapter is on it.
        trained: paths of modules that are trained in full; their tensors are left out.
    """
    names = sorted(name for name in state if not is_inside(name, trained))
    with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
        digests = pool.map(lambda name: _digest(state[name]), names)
    total = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        tensor = state[name]
        total.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0{digest}\n".encode())
    return f"sha256:{total.hexdigest()}"


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().data).hexdigest()
