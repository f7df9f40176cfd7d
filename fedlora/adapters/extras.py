"""Tensors of plug-ins beside those of an adapter: each has the shape of one of them, in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from fedlora.adapters.names import extra_key, split_extra
from fedlora.tensors.manifest import DataType, TensorManifest

__all__ = ["extra_manifest", "extras_of", "flat", "without_extras"]


def extra_manifest(adapter: TensorManifest, names: Iterable[str]) -> TensorManifest:
    """Under each name a copy of every tensor that `adapter` names."""
    return TensorManifest(
        tensors=tuple(
            replace(info, name=extra_key(name, info.name), dtype=DataType.F32)
            for name in names
            for info in adapter.tensors
        )
    )


def without_extras(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's own tensors."""
    return {key: tensor for key, tensor in tensors.items() if not split_extra(key)[0]}


def extras_of(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """What is under one name, by the adapter's tensors."""
    parts = {split_extra(key): tensor for key, tensor in tensors.items()}
    return {key: tensor for (found, key), tensor in parts.items() if found == name}


def flat(owner: str, extras: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """A plug-in's tensors by their keys.

    Args:
        owner: its name.
        extras: by its own name for them, and by the adapter's tensors.
    """
    return {
        extra_key(f"{owner}/{name}", key): tensor
        for name, tensors in extras.items()
        for key, tensor in tensors.items()
    }
