"""An update in a codec, read as the adapter that it says: what was given, and the change on it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from aggregator_service.aggregation.adapter_file import AdapterFile, SafetensorsFile
from aggregator_service.aggregation.slicing import given_shape, given_tensor
from fedlora.codecs.base import Codec
from fedlora.codecs.updates import fault_of, field_names, read_tensor
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = ["CodedTensors", "check_codes"]


class CodedTensors:
    """The tensors of a coded update, decoded in float32 whenever one is asked for.

    Args:
        path: the update.
        codec: what it is written in.
        base: the version it began from; closed with this.
        rank: of the adapter that the worker was given.
        owner: the worker, for messages.
    """

    def __init__(
        self, path: Path, *, codec: Codec, base: AdapterFile, rank: int, owner: str
    ) -> None:
        self._codec, self._base, self._rank = codec, base, rank
        self._file = SafetensorsFile(path, owner)

    def names(self) -> Iterable[str]:
        """Of the adapter's tensors, not of the file's."""
        return {name.rpartition(".")[0] for name in self._file.names()}

    def shape(self, key: str) -> tuple[int, ...]:
        """That of the tensor that was given."""
        return given_shape(self._base, key, self._rank)

    def dtype(self, key: str) -> str:  # noqa: ARG002
        """Float32."""
        return DataType.F32.safetensors_name

    def tensor(self, key: str) -> Tensor:
        """What the worker means."""
        info = TensorInfo(name=key, shape=self.shape(key), dtype=DataType.F32)
        names = field_names(info, self._codec)
        fields = {field: self._file.tensor(name) for field, name in names.items()}
        return read_tensor(self._codec, info, fields, given_tensor(self._base, key, self._rank))

    def close(self) -> None:
        """Closes the update and the version it began from."""
        self._file.close()
        self._base.close()


def check_codes(path: Path, *, codec: Codec, plain: TensorManifest, owner: str) -> None:
    """Refuses an update that no encoder has written, though its manifest is right.

    Args:
        path: the update's file.
        codec: the run's.
        plain: the adapter's tensors that it must say.
        owner: the worker, for messages.

    Raises:
        FedLoraError: INVALID_PAYLOAD.
    """
    file = SafetensorsFile(path, owner)
    try:
        for info in plain.tensors:
            names = field_names(info, codec)
            fields = {field: file.tensor(name) for field, name in names.items()}
            if fault := fault_of(codec, info, fields):
                raise FedLoraError(
                    Reason.INVALID_PAYLOAD,
                    f"{owner}: tensor {info.name!r} is not what {codec.name.value} writes: {fault}",
                )
    finally:
        file.close()
