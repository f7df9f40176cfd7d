"""Receives an exported adapter and writes it as a PEFT folder, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import admin_pb2 as pb
from fedlora.rpc.channel import MAX_CHUNK_BYTES
from fedlora.wire.stream import receive_payload

__all__ = ["DownloadedAdapter", "download_adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadedAdapter:
    """What was fetched."""

    adapter_version: int
    round: int
    total_bytes: int
    digest: str
    """hexadecimal"""


def download_adapter(messages: Iterator[object], folder: Path) -> DownloadedAdapter:
    """Writes a streamed adapter to `folder`.

    Args:
        messages: header, chunks, commit.
        folder: must not exist; it is renamed into place once everything is verified.

    Raises:
        FedLoraError: ALREADY_EXISTS for a folder that is there; what `receive_payload` raises for
            a stream that is not whole.
    """
    if folder.exists():
        raise FedLoraError(
            Reason.ALREADY_EXISTS, f"{str(folder)!r} is there already", hint="Name a new folder"
        )
    first = next(messages, None)
    if not isinstance(first, pb.ExportAdapterResponse) or not first.HasField("header"):
        raise FedLoraError(Reason.UPLOAD_INCOMPLETE, "the stream did not begin with its header")
    header = first.header
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the rename stays within one file system.
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with (scratch / "adapter_model.safetensors").open("wb") as file:
            receive_payload(
                messages,
                total_bytes=header.total_bytes,
                digest=header.digest,
                max_chunk_bytes=MAX_CHUNK_BYTES,
                sink=file.write,
            )
            file.flush()
            os.fsync(file.fileno())
        (scratch / "adapter_config.json").write_text(header.adapter_config_json, encoding="utf-8")
        # mkdtemp makes the folder for its owner only.
        scratch.chmod(0o755)
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return DownloadedAdapter(
        adapter_version=header.adapter_version,
        round=header.round,
        total_bytes=header.total_bytes,
        digest=header.digest.hex(),
    )
