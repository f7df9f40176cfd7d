"""Which tensors a run's adapter consists of at one rank: as attached, in part, as published."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fedlora.adapters.names import Part, part_key
from fedlora.adapters.spec import AdapterKind, AdapterLayout
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = ["AdapterShape"]


@dataclass(frozen=True, kw_only=True)
class AdapterShape:
    """One worker's adapter, without its values."""

    layout: AdapterLayout
    kind: AdapterKind
    rank: int
    dtype: DataType
    """element type on the wire"""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of each module as peft attaches them."""
        magnitude = (Part.MAGNITUDE,) if self.kind is AdapterKind.DORA else ()
        return (Part.A, Part.B, *magnitude)

    def manifest(self, parts: Collection[Part]) -> TensorManifest:
        """Those parts of every module, and the modules trained in full."""
        return self.layout.manifest(self.rank, self.dtype, kind=self.kind, parts=parts)

    @property
    def largest_base_bytes(self) -> int:
        """What has been added to the base model, at the highest rank that layers have."""
        numbers = sum(
            min(m.in_features, m.out_features) * (m.in_features + m.out_features)
            for m in self.layout.modules
        )
        return numbers * self.dtype.item_bytes

    def version(self, found: TensorManifest) -> TensorManifest:
        """What a published version must hold to be one of this adapter.

        Args:
            found: what it holds. Cores are there for all modules or none; what has been added to
                the base model for some only, at whatever rank it has grown to.
        """
        cores = any(part_key(m.path, Part.CORE) in found.by_name for m in self.layout.modules)
        whole = self.manifest((*self.parts, Part.CORE) if cores else self.parts)
        added = []
        for module in self.layout.modules:
            held = found.by_name.get(part_key(module.path, Part.BASE_A))
            if held is not None and held.shape:
                added += [
                    TensorInfo(
                        name=part_key(module.path, part),
                        shape=module.shape(part, held.shape[0]),
                        dtype=self.dtype,
                    )
                    for part in (Part.BASE_A, Part.BASE_B)
                ]
        return TensorManifest(tensors=(*whole.tensors, *added))
