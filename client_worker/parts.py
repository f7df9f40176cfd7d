"""Which tensors of an adapter a round's plan means.

Modules trained in full belong to no part: they are trained and sent in every round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from client_worker.training.stages import personal_axis
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.shape import AdapterShape
from fedlora.runs.plan import RoundPlan
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = ["personal_manifest", "pick", "private_manifest", "sent_manifest"]


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


def personal_manifest(shape: AdapterShape, plan: RoundPlan) -> TensorManifest:
    """The worker's own magnitudes of B: one a vector, under the module's path."""
    along = personal_axis(plan).summed(Part.B)
    return TensorManifest(
        tensors=tuple(
            TensorInfo(
                name=module.path,
                shape=(module.shape(Part.B, shape.rank)[1 - along],),
                dtype=DataType.F32,
            )
            for module in shape.layout.modules
        )
    )


def pick(tensors: Mapping[str, Tensor], manifest: TensorManifest) -> dict[str, Tensor]:
    """The tensors that a manifest names."""
    return {info.name: tensors[info.name] for info in manifest.tensors}
