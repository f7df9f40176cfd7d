"""Where updates become an adapter: from the records of a round to files, off the event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from aggregator_service.aggregation import registry
from aggregator_service.aggregation.driver import Contribution, aggregate, certify
from aggregator_service.aggregation.slicing import slice_rank
from aggregator_service.rounds.outcome import update_weights
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import Certificate
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec

__all__ = ["AggregationEngine", "resolve_device"]

T = TypeVar("T")


def resolve_device(device: str) -> torch.device:
    """The torch device for `auto`, `cpu` or `cuda:N`.

    Raises:
        FedLoraError: DEVICE_UNAVAILABLE if it is not there.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise FedLoraError(
            Reason.INVALID_CONFIG, f"server.device: expected auto, cpu or cuda:N, got {device!r}"
        ) from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"server.device is {device!r}, and torch sees {torch.cuda.device_count()} CUDA devices",
            hint="Use --device auto, or check the driver and CUDA_VISIBLE_DEVICES",
        )
    return resolved


class AggregationEngine:
    """Combines the updates of a round, and measures what that lost.

    Aggregation has a thread of its own, so that a long certificate never delays the next round.

    Args:
        blobs: where updates lie and adapters go.
        device: `auto`, `cpu` or `cuda:N`.
        threads: torch threads on a CPU; 0 leaves torch's default.
    """

    def __init__(self, blobs: BlobStore, *, device: str = "auto", threads: int = 0) -> None:
        self._blobs = blobs
        self._device = resolve_device(device)
        if threads:
            torch.set_num_threads(threads)
        self._aggregator = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aggregate")
        self._certifier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="certify")
        self._slices: dict[tuple[str, int], AdapterRecord] = {}

    @property
    def device(self) -> torch.device:
        """Where the arithmetic runs."""
        return self._device

    async def aggregate(self, state: RunState) -> AdapterRecord:
        """Combines the round's updates into the next version and stores it as a blob."""
        return await self._run(self._aggregator, functools.partial(self._aggregate, state))

    async def certify(self, state: RunState, round: int, store: ThreadedStore) -> Certificate:
        """Measures a round's aggregation from the committed files."""
        run_id = state.run_id
        updates = await store.call(lambda s: s.updates(run_id, round))
        adapters = {a.version: a for a in await store.call(lambda s: s.adapters(run_id))}
        published = next(a for a in adapters.values() if a.round == round)
        base = adapters.get(updates[0].base_version)
        work = functools.partial(self._certify, state.spec, updates, published, base)
        return await self._run(self._certifier, work)

    async def at_rank(self, spec: RunSpec, adapter: AdapterRecord, rank: int) -> AdapterRecord:
        """The adapter at a worker's own rank: its leading components, as a blob of their own."""
        if rank == adapter.rank:
            return adapter
        key = (adapter.sha256, rank)
        if key not in self._slices:
            work = functools.partial(self._slice, spec, adapter, rank)
            self._slices[key] = await self._run(self._aggregator, work)
        return self._slices[key]

    def close(self) -> None:
        """Waits for the work in hand."""
        self._aggregator.shutdown(cancel_futures=True)
        self._certifier.shutdown(cancel_futures=True)

    # --- in threads ----------------------------------------------------------------------

    def _aggregate(self, state: RunState) -> AdapterRecord:
        spec = state.spec
        temporary = self._blobs.new_temporary()
        try:
            outcome = aggregate(
                self._contributions(spec, state.updates.values()),
                registry.create(spec.method.name, spec.method.options),
                output=temporary,
                rank=spec.adapter.r,
                output_scaling=spec.adapter.scaling,
                dtype=spec.wire_dtype,
                device=self._device,
                seed=derive_seed(spec.seed, state.round, "aggregate"),
                metadata={"format": "pt"},
            )
            sha256 = self._blobs.adopt(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return AdapterRecord(
            version=(state.version or 0) + 1,
            round=state.round,
            sha256=sha256,
            total_bytes=self._blobs.path(sha256).stat().st_size,
            rank=outcome.rank,
            measurements=outcome.measurements,
        )

    def _certify(
        self,
        spec: RunSpec,
        updates: Iterable[UpdateRecord],
        published: AdapterRecord,
        base: AdapterRecord | None,
    ) -> Certificate:
        started = time.perf_counter()
        certificate = certify(
            self._contributions(spec, updates),
            published=self._verified(published.sha256),
            published_scaling=spec.adapter.scaling(published.rank),
            base=self._verified(base.sha256) if base else None,
            base_scaling=spec.adapter.scaling(base.rank) if base else 1.0,
            method_name=spec.method.name,
            measurements=published.measurements,
            device=self._device,
        )
        return replace(certificate, seconds=time.perf_counter() - started)

    def _slice(self, spec: RunSpec, adapter: AdapterRecord, rank: int) -> AdapterRecord:
        temporary = self._blobs.new_temporary()
        try:
            slice_rank(
                self._verified(adapter.sha256),
                temporary,
                rank=rank,
                rescale=spec.adapter.scaling(adapter.rank) / spec.adapter.scaling(rank),
            )
            sha256 = self._blobs.adopt(temporary)
        finally:
            temporary.unlink(missing_ok=True)
        size = self._blobs.path(sha256).stat().st_size
        return replace(adapter, sha256=sha256, total_bytes=size, rank=rank)

    def _contributions(self, spec: RunSpec, updates: Iterable[UpdateRecord]) -> list[Contribution]:
        updates = tuple(updates)
        weights = update_weights(spec, updates)
        return [
            Contribution(
                worker=u.worker,
                weight=weights[u.worker],
                path=self._verified(u.sha256),
                scaling=spec.adapter.scaling(u.rank),
            )
            for u in updates
        ]

    def _verified(self, sha256: str) -> Path:
        # A damaged file must never become part of an adapter.
        self._blobs.verify(sha256)
        return self._blobs.path(sha256)

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, work)
