"""Coded updates by the formats' own definition, for tests that compare."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fedlora.codecs.base import Codec
from fedlora.codecs.updates import field_names, read_tensor
from fedlora.tensors.manifest import TensorManifest


def read_update(
    codec: Codec, payload: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The adapter that an update says: all of what was given, changed."""
    return {
        info.name: read_tensor(
            codec,
            info,
            {field: payload[name] for field, name in field_names(info, codec).items()},
            given[info.name],
        )
        for info in TensorManifest.of(given).tensors
    }
