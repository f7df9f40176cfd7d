"""Which tensors of an adapter a round's plan means.

Modules trained in full belong to no part: they are trained and sent in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from fedlora.adapters.names import parse_key
from fedlora.runs.plan import RoundPlan
from fedlora.tensors.manifest import DataType, TensorManifest

__all__ = ["pick", "private_manifest", "sent_manifest"]


def sent_manifest(adapter: TensorManifest, plan: RoundPlan) -> TensorManifest:
    """What an update of the round holds.

    Args:
        adapter: the whole adapter's tensors.
        plan: the round's.
    """
    return TensorManifest(
        tensors=tuple(t for t in adapter.tensors if parse_key(t.name).part in (None, *plan.trained))
    )


def private_manifest(adapter: TensorManifest, plan: RoundPlan) -> TensorManifest:
    """What the worker keeps from round to round, in the precision of training."""
    return TensorManifest(
        tensors=tuple(
            replace(t, dtype=DataType.F32)
            for t in adapter.tensors
            if parse_key(t.name).part in plan.private
        )
    )


def pick(tensors: Mapping[str, Tensor], manifest: TensorManifest) -> dict[str, Tensor]:
    """The tensors that a manifest names."""
    return {info.name: tensors[info.name] for info in manifest.tensors}
