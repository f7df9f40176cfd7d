"""Versions as they are sent: at a worker's rank, only what it lacks; or as PEFT loads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aggregator_service.aggregation.adapter_file import AdapterFile, read_manifest
from aggregator_service.aggregation.servable import servable_rank, write_servable
from aggregator_service.aggregation.slicing import is_at_rank, slice_adapter
from aggregator_service.rounds.state import AdapterRecord
from aggregator_service.store.blobs import BlobStore
from aggregator_service.stored_versions import StoredVersions
from fedlora.adapters.names import Part
from fedlora.runs.spec import RunSpec
from fedlora.tensors.manifest import TensorManifest

__all__ = ["WorkerCopy", "servable_blob", "worker_copy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCopy:
    """A version as one worker is sent it, as a blob: that of the version or one of its own."""

    digest: str
    total_bytes: int
    rank: int
    manifest: TensorManifest


def worker_copy(
    blobs: BlobStore,
    versions: StoredVersions,
    spec: RunSpec,
    adapter: AdapterRecord,
    *,
    rank: int,
    parts: frozenset[Part],
) -> WorkerCopy:
    """The adapter as one worker is sent it: at its rank, and only the parts it lacks. Blocks.

    The blob is pinned, for the caller to release.
    """
    source = versions.begun(spec, adapter)
    with AdapterFile(source.path, source.scaling, "the adapter") as file:
        held = {part for module in file.modules for part in file.parts(module)}
        whole = is_at_rank(file, rank) and held <= parts
    digest = source.path.name
    if whole:
        blobs.pin(digest)
    else:
        with versions.temporary() as output:
            slice_adapter(source.path, output, rank=rank, scaling=source.scaling, parts=parts)
            digest = blobs.adopt(output)
    path = blobs.path(digest)
    return WorkerCopy(
        digest=digest,
        total_bytes=path.stat().st_size,
        rank=rank,
        manifest=read_manifest(path),
    )


def servable_blob(
    blobs: BlobStore, digest: str, scaling: Callable[[int], float]
) -> tuple[str, int]:
    """Digest and rank of a version in the form that PEFT loads; stored where it is another file.

    The blob is pinned, for the caller to release.
    """
    source = blobs.path(digest)
    if rank := servable_rank(source, scaling):
        blobs.pin(digest)
        return digest, rank
    temporary = blobs.new_temporary()
    try:
        rank = write_servable(source, temporary, scaling=scaling)
        return blobs.adopt(temporary), rank
    finally:
        temporary.unlink(missing_ok=True)
