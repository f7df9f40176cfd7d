"""A run's versions and updates as files whose bytes are what their digests say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from aggregator_service.aggregation.adapter_file import StoredAdapter
from aggregator_service.aggregation.contribution import Coding, Contribution
from aggregator_service.aggregation.slicing import slice_adapter
from aggregator_service.rounds.state import AdapterRecord, UpdateRecord
from aggregator_service.store.blobs import BlobStore
from fedlora.adapters.spec import AdapterSpec
from fedlora.codecs.updates import create_codec
from fedlora.runs.spec import RunSpec

__all__ = ["StoredVersions"]


class StoredVersions:
    """Finds versions and updates. Its methods block; what they return was read and is sound.

    Args:
        blobs: where they lie.
    """

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._widened: dict[tuple[str, AdapterSpec], str] = {}
        """digests of first versions of too low a rank, and of what rounds begin from instead, which
        stay pinned; two runs may have one first version and different ranks"""

    def verified(self, digest: str) -> Path:
        """A blob; STATE_CORRUPT if it is damaged: it must never become part of an adapter."""
        self._blobs.verify(digest)
        return self._blobs.path(digest)

    def published(self, spec: RunSpec, adapter: AdapterRecord) -> StoredAdapter:
        """A version as it was sent out."""
        return StoredAdapter(path=self.verified(adapter.digest), scaling=spec.adapter.scaling)

    def begun(self, spec: RunSpec, adapter: AdapterRecord) -> StoredAdapter:
        """A version as rounds begin from it.

        Version 0 has the rank of the worker that made it. Where that is below the run's it is
        widened here, the same for all: a method that leaves a factor alone would else go on with
        one of another rank than its own results.
        """
        stored = self.published(spec, adapter)
        if adapter.version > 0 or adapter.rank >= spec.adapter.r:
            return stored
        key = (adapter.digest, spec.adapter)
        if key not in self._widened:
            with self.temporary() as output:
                slice_adapter(
                    stored.path, output, rank=spec.adapter.r, scaling=spec.adapter.scaling
                )
                self._widened[key] = self._blobs.adopt(output)
        return replace(stored, path=self.verified(self._widened[key]))

    def contributions(
        self,
        spec: RunSpec,
        updates: Iterable[UpdateRecord],
        bases: Mapping[int, StoredAdapter],
        *,
        where: Callable[[str], Path] | None = None,
    ) -> list[Contribution]:
        """The updates, each with the weight that its examples give it.

        Args:
            spec: of the run.
            updates: of a round.
            bases: the versions that they began from, by number.
            where: finds a file by its digest; None verifies its bytes.
        """
        path_of = where or self.verified
        codec = create_codec(spec.codec) if spec.codec else None
        return [
            Contribution(
                worker=u.worker,
                weight=float(u.num_examples),
                path=path_of(u.digest),
                scaling=spec.adapter.scaling,
                given_rank=u.given_rank or u.rank,
                metrics=u.metrics,
                coding=Coding(codec=codec, base=bases[u.base_version]) if codec else None,
            )
            for u in updates
        ]

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A path for a file in the making, gone when the block ends unless it was adopted."""
        path = self._blobs.new_temporary()
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
