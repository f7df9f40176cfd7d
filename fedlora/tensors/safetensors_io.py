"""Tensors to bytes and back, in the safetensors format, without a copy of the whole.

An outgoing payload is a header and the tensors' own memory, handed out in pieces; an incoming one
is checked by `fedlora.tensors.header` before any of it is believed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.header import (
    LENGTH_BYTES,
    ParsedHeader,
    TensorSpan,
    check_size,
    data_order,
    encode_header,
    header_limit,
    parse_header,
    parse_length,
)
from fedlora.tensors.manifest import TensorManifest

__all__ = ["Payload", "decode", "decode_mapped", "encode"]

METADATA = {"format": "pt"}
"""what peft and transformers write"""


class Payload:
    """Tensors as the bytes of a safetensors file, made while they are read.

    Args:
        tensors: by PEFT name, on the CPU; they must not change while the payload is in use.
        metadata: strings for the header.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.manifest = TensorManifest.of(tensors)
        head = encode_header(self.manifest, METADATA if metadata is None else metadata)
        self._parts = [memoryview(head)]
        self._parts += [_memory(tensors[info.name]) for info in data_order(self.manifest)]
        self.total_bytes = sum(len(p) for p in self._parts)
        digest = new_digest()
        for part in self._parts:
            digest.update(part)
        self.digest = digest.digest()

    def chunks(self, start_offset: int, max_chunk_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Offset and bytes of the payload from `start_offset` on, in pieces."""
        for offset, pieces in self.views(start_offset, max_chunk_bytes):
            yield offset, b"".join(pieces)

    def views(
        self, start_offset: int, max_chunk_bytes: int
    ) -> Iterator[tuple[int, list[memoryview]]]:
        """As `chunks`, but each as views of the tensors' own memory, to be joined."""
        position, offset, size = 0, start_offset, 0
        pieces: list[memoryview] = []
        for part in self._parts:
            begin = max(0, start_offset - position)
            position += len(part)
            while begin < len(part):
                piece = part[begin : begin + max_chunk_bytes - size]
                pieces.append(piece)
                begin, size = begin + len(piece), size + len(piece)
                if size == max_chunk_bytes:
                    yield offset, pieces
                    offset, size, pieces = offset + size, 0, []
        if pieces:
            yield offset, pieces


def encode(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Payload:
    """The payload of tensors: sorted by name, so equal tensors are equal bytes."""
    return Payload(tensors, metadata)


def decode(source: Path | bytes, manifest: TensorManifest) -> dict[str, torch.Tensor]:
    """The tensors of a file or its bytes, checked against the manifest before they are read.

    Values are not checked for being finite: that is done where they come from
    (`fedlora.tensors.verifier`).

    Raises:
        FedLoraError: INVALID_PAYLOAD or MANIFEST_MISMATCH.
    """
    data = source if isinstance(source, bytes) else _read_file(source)
    header = _read_header(data, manifest)
    return _tensors(memoryview(bytearray(data)) if isinstance(data, bytes) else data, header)


def decode_mapped(path: Path, manifest: TensorManifest) -> dict[str, torch.Tensor]:
    """As `decode`, of a file whose bytes never change: its tensors lie in the page cache.

    They take private memory only where they are written to, which does not change the file. It may
    be removed meanwhile; one that is cut short ends the process that reads beyond its end (SIGBUS).

    Raises:
        FedLoraError: INVALID_PAYLOAD or MANIFEST_MISMATCH.
    """
    # There is no mapping of nothing.
    check_size(path.stat().st_size, manifest)
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    return _tensors(data, _read_header(data, manifest))


def _tensors(buffer: memoryview, header: ParsedHeader) -> dict[str, torch.Tensor]:
    return {span.info.name: _tensor(buffer, span) for span in header.spans}


def _tensor(buffer: memoryview, span: TensorSpan) -> torch.Tensor:
    data = buffer[span.begin : span.end]
    if span.begin % span.info.dtype.item_bytes:
        # The format does not promise alignment, kernels may rely on it.
        data = memoryview(bytearray(data))
    return torch.frombuffer(data, dtype=span.info.dtype.torch_dtype).reshape(span.info.shape)


def _read_file(path: Path) -> memoryview:
    data = bytearray(path.stat().st_size)
    with path.open("rb") as file:
        if file.readinto(data) != len(data):
            raise FedLoraError(Reason.INVALID_PAYLOAD, f"{path} changed while it was read")
    return memoryview(data)


def _read_header(data: bytes | memoryview, manifest: TensorManifest) -> ParsedHeader:
    total = len(data)
    check_size(total, manifest)
    limit = header_limit(manifest)
    length = parse_length(bytes(data[:LENGTH_BYTES]), total_bytes=total, limit=limit)
    text = bytes(data[LENGTH_BYTES : LENGTH_BYTES + length])
    return parse_header(text, manifest, total)


def _memory(tensor: torch.Tensor) -> memoryview:
    if tensor.device.type != "cpu":
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected a tensor on the CPU, got one on {tensor.device}"
        )
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
