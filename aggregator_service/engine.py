"""Where updates become an adapter: from the records of a round to files, off the event loop."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog
import torch

from aggregator_service.aggregation import registry
from aggregator_service.aggregation.base_weights import BaseWeights
from aggregator_service.aggregation.certify import certify
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.gram_blocks import RoundGrams, pays
from aggregator_service.aggregation.parallel import own_thread
from aggregator_service.aggregation.refine import refine
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from aggregator_service.aggregation.stale_updates import Discount, LateContribution, cohort_of
from aggregator_service.failpoints import Failpoint, reach
from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from aggregator_service.shared_work import SharedWork
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.files import mapped_errors
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.stored_versions import StoredVersions
from aggregator_service.worker_copies import WorkerCopy, servable_blob, worker_copy
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.phase import RunPhase
from fedlora.runs.plan import Selection
from fedlora.runs.report import Certificate
from fedlora.runs.rounds import RoundEngine
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec

__all__ = ["AggregationEngine", "aggregated_in", "resolve_device"]

log = structlog.get_logger(__name__)

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


_KEPT_COPIES = 64
"""versions at a rank that workers may still ask for"""


class AggregationEngine:
    """Combines the updates of a round, and measures what that lost.

    Aggregation has a thread of its own, so that a long certificate never delays the next round.

    Args:
        blobs: where updates lie and adapters go.
        device: `auto`, `cpu` or `cuda:N`.
        threads: modules that are combined at a time on a CPU; 0 for as many as there are cores.
        memory_bytes: what combining, and measuring, may take; 0 for half of the machine's.
        base_weights: the base model's frozen weights, for methods that read them; closed with
            the engine.
    """

    def __init__(
        self,
        blobs: BlobStore,
        *,
        device: str = "auto",
        threads: int = 0,
        memory_bytes: int = 0,
        base_weights: BaseWeights | None = None,
    ) -> None:
        self._blobs = blobs
        self._device = resolve_device(device)
        self._threads, self._memory_bytes = threads, memory_bytes
        self._aggregator, self._certifier = own_thread("aggregate"), own_thread("certify")
        self._versions = StoredVersions(blobs)
        self._copies: SharedWork[tuple[str, AdapterSpec, int, frozenset[Part]], WorkerCopy] = (
            SharedWork(_KEPT_COPIES, on_dropped=lambda copy: blobs.release(copy.digest))
        )
        self._unnamed: dict[str, list[str]] = {}
        """by run: blobs made for a version that may not be stored yet, each pinned"""
        self._base_weights = base_weights
        self._checked: set[str] = set()
        """runs whose base model the frozen weights are"""
        self._gram_readers: dict[str, bool] = {}
        """by run: whether its recipe reads Gram blocks as updates are sent; asked for each"""
        self._grams: dict[str, tuple[int, RoundGrams]] = {}
        """by run: the round that is open, and Gram blocks of its updates"""
        self._closed_grams: dict[str, tuple[int, RoundGrams]] = {}
        """by run: the round that waits for its certificate, and the same"""

    @property
    def device(self) -> torch.device:
        """Where the arithmetic runs."""
        return self._device

    @property
    def has_base_weights(self) -> bool:
        """Whether methods can read the frozen weights."""
        return self._base_weights is not None

    async def aggregate(self, state: RunState, store: ThreadedStore) -> AdapterRecord:
        """Combines the round's updates into the next version and stores it as a blob.

        Tell `settled` once the version is in the store, or never will be; after `refine` too.
        """
        began = {u.base_version for u in state.updates.values()}
        bases = await _versions(store, state.run_id, began)
        return await self._run(self._aggregator, functools.partial(self._aggregate, state, bases))

    def prepare(self, state: RunState) -> None:
        """Computes ahead, while the round's other updates are awaited; returns at once."""
        if state.phase is RunPhase.TRAINING and self._gains(state):
            self._aggregator.submit(self._prepare, state)

    def settled(self, run_id: str) -> None:
        """The store names what was made of a run, or nobody ever will."""
        for digest in self._unnamed.pop(run_id, ()):
            self._blobs.release(digest)

    def forget(self, run_id: str) -> None:
        """Lets go of what was computed ahead for a run that goes no further; returns at once."""
        # In the thread that makes it: what is under way there would leave it behind.
        self._aggregator.submit(self._forget, run_id)

    async def refine(self, state: RunState) -> AdapterRecord:
        """Puts what the refiner trained into what the round came to, as the next version."""
        return await self._run(self._aggregator, functools.partial(self._refine, state))

    async def certify(self, state: RunState, round: int, store: ThreadedStore) -> Certificate:
        """Measures a round's aggregation from the committed files."""
        run_id = state.run_id
        updates = await store.call(lambda s: s.updates(run_id, round))
        cohort = tuple(u for u in updates if not u.is_refinement)
        published = await store.call(lambda s: aggregated_in(s, run_id, round))
        number = published.base_version or 0
        bases = await _versions(store, run_id, {number, *(u.base_version for u in cohort)})
        base = bases[number]
        known, grams = self._closed_grams.pop(run_id, (0, None))
        grams = grams if known == round else None
        work = functools.partial(self._certify, state.spec, cohort, published, base, bases, grams)
        return await self._run(self._certifier, work)

    async def copy_for(
        self, spec: RunSpec, adapter: AdapterRecord, rank: int, parts: frozenset[Part]
    ) -> WorkerCopy:
        """The adapter as one worker is sent it: at its rank, and only the parts it lacks.

        Its blob stays while it is one of the last that were asked for; pin it to read it.
        """
        work = functools.partial(
            worker_copy, self._blobs, self._versions, spec, adapter, rank=rank, parts=parts
        )
        made = self._copies.begin(
            (adapter.digest, spec.adapter, rank, parts), lambda: self._run(self._aggregator, work)
        )
        return await asyncio.shield(made)

    async def servable(self, spec: RunSpec, adapter: AdapterRecord) -> tuple[str, int]:
        """Digest and rank of a version in the form that PEFT loads; pinned, to be released."""
        scaling = spec.adapter.scaling
        work = functools.partial(servable_blob, self._blobs, adapter.digest, scaling)
        return await self._run(
            self._certifier, work, unused=lambda found: self._blobs.release(found[0])
        )

    def close(self) -> None:
        """Waits for the work in hand."""
        self._aggregator.shutdown(cancel_futures=True)
        self._certifier.shutdown(cancel_futures=True)
        if self._base_weights is not None:
            self._base_weights.close()

    def _gains(self, state: RunState) -> bool:
        """Whether Gram blocks of the round's updates are of use at its close."""
        plan, rules = state.plan, state.spec.rounds
        if rules.counts_late_updates:
            # Which updates are late, and so are read as something else, is known at the close.
            return False
        whole = {Part.A, Part.B} <= {*plan.trained} and plan.selection is Selection.ALL
        # A GPU computes all of them at the close in less time than it takes to fetch them.
        return whole and self._device.type == "cpu" and self._reads_grams(state)

    def _reads_grams(self, state: RunState) -> bool:
        if state.run_id not in self._gram_readers:
            recipe = registry.create_recipe(state.spec.method, state.spec.plugins)
            # Where updates are scaled, what one counts as is known at the close.
            scales = any(plugin.traits.scales_updates for plugin in recipe.plugins)
            self._gram_readers[state.run_id] = recipe.method.reads_grams and not scales
        return self._gram_readers[state.run_id]

    # --- in threads ----------------------------------------------------------------------

    def _prepare(self, state: RunState) -> None:
        try:
            self._round_grams(state)
        except Exception:
            # The close computes what is missing, and tells what is wrong to whom it concerns.
            log.exception("prepare_failed", run=state.spec.name, round=state.round)

    def _forget(self, run_id: str) -> None:
        self._grams.pop(run_id, None)
        self._closed_grams.pop(run_id, None)

    def _round_grams(self, state: RunState) -> RoundGrams | None:
        """The Gram blocks of the updates that the round has by now."""
        counted = [u for u in state.updates.values() if u.num_examples > 0]
        if state.adapter is None or state.layout is None or not counted or not self._gains(state):
            return None
        # Before any file is opened: a thousand updates would be, for every one that comes.
        ranks = sum(u.rank for u in counted)
        if not any(pays(ranks, m.out_features, m.in_features) for m in state.layout.modules):
            self._grams.pop(state.run_id, None)
            return None
        round, grams = self._grams.get(state.run_id, (0, None))
        if grams is None or round != state.round:
            grams = RoundGrams(
                self._versions.begun(state.spec, state.adapter), threads=self._threads
            )
            self._grams[state.run_id] = (state.round, grams)
        # Not verified yet: the close does it, before anything is made of these blocks.
        bases = {state.adapter.version: grams.start}
        grams.add(self._versions.contributions(state.spec, counted, bases, where=self._blobs.path))
        return grams

    def _aggregate(self, state: RunState, bases: Mapping[int, AdapterRecord]) -> AdapterRecord:
        spec, recipe = state.spec, registry.create_recipe(state.spec.method, state.spec.plugins)
        if state.adapter is None:
            raise AssertionError("a round builds on a version")
        before, context = self._context(spec, state.round, state.adapter)
        updates = state.updates.values()
        try:
            with (
                self._versions.temporary() as output,
                self._versions.temporary() as remembered,
                self._cohort(spec, recipe, updates, before, bases) as cohort,
            ):
                # Only now is it known that the files are what was sent.
                grams = self._round_grams(state)
                outcome = aggregate(
                    cohort,
                    recipe,
                    output=output,
                    state_output=remembered,
                    context=replace(
                        context,
                        base_weights=self._frozen(recipe, state),
                        grams=grams,
                        num_workers=state.num_parties,
                    ),
                    rank=spec.adapter.r,
                    output_scaling=spec.adapter.scaling,
                    dtype=spec.wire_dtype,
                    device=self._device,
                    threads=self._threads,
                    memory_bytes=self._memory_bytes,
                    seed=derive_seed(spec.seed, state.round, "aggregate"),
                    metadata={"format": "pt"},
                    progress=lambda *_: reach(Failpoint.MID_AGGREGATION),
                )
                # The state first: a version that is known is whole.
                kept = self._adopt(state, remembered) if outcome.has_state else ""
                digest = self._adopt(state, output)
        finally:
            self._grams.pop(state.run_id, None)
        if grams is not None and spec.rounds.certifies(state.round):
            self._closed_grams[state.run_id] = (state.round, grams)
        reach(Failpoint.AGGREGATE_STORED)
        if any(plugin.traits.needs_norms for plugin in recipe.plugins):
            # Cut by what was measured: worth a look. What FedNova does to all is in the report.
            for name, share in outcome.shares.items():
                log.info(
                    "change_scaled", run=spec.name, round=state.round, worker=name, share=share
                )
        return AdapterRecord(
            version=(state.version or 0) + 1,
            round=state.round,
            digest=digest,
            total_bytes=self._blobs.path(digest).stat().st_size,
            rank=outcome.rank,
            measurements=outcome.measurements,
            weights=outcome.weights,
            shares=outcome.shares,
            state_digest=kept,
            base_version=state.adapter.version,
        )

    def _refine(self, state: RunState) -> AdapterRecord:
        spec, update, combined = state.spec, state.refinement, state.adapter
        if update is None or combined is None:
            raise AssertionError("a refinement follows an aggregation")
        with self._versions.temporary() as output:
            refine(
                registry.create_recipe(spec.method, spec.plugins),
                combined=self._versions.published(spec, combined),
                refined=StoredAdapter(
                    path=self._versions.verified(update.digest), scaling=spec.adapter.scaling
                ),
                parts=state.plan.refined,
                output=output,
                dtype=spec.wire_dtype,
                device=self._device,
            )
            digest = self._adopt(state, output)
        return replace(
            combined,
            version=combined.version + 1,
            digest=digest,
            total_bytes=self._blobs.path(digest).stat().st_size,
            is_refinement=True,
        )

    def _adopt(self, state: RunState, path: Path) -> str:
        """Makes a file a blob that stays until the run's new version is settled."""
        digest = self._blobs.adopt(path)
        self._unnamed.setdefault(state.run_id, []).append(digest)
        return digest

    def _certify(
        self,
        spec: RunSpec,
        updates: Collection[UpdateRecord],
        published: AdapterRecord,
        base: AdapterRecord,
        bases: Mapping[int, AdapterRecord],
        grams: RoundGrams | None,
    ) -> Certificate:
        started = time.perf_counter()
        recipe, weights = registry.create_recipe(spec.method, spec.plugins), published.weights
        before, context = self._context(spec, published.round, base)
        with self._cohort(spec, recipe, updates, before, bases) as cohort:
            certificate = certify(
                [replace(c, weight=weights[c.worker]) for c in cohort],
                recipe,
                published=self._versions.published(spec, published),
                context=replace(context, grams=grams),
                measurements=published.measurements,
                shares=published.shares,
                device=self._device,
                threads=self._threads,
                memory_bytes=self._memory_bytes,
            )
        return replace(certificate, seconds=time.perf_counter() - started)

    @contextmanager
    def _cohort(
        self,
        spec: RunSpec,
        recipe: Recipe,
        updates: Collection[UpdateRecord],
        before: StoredAdapter,
        bases: Mapping[int, AdapterRecord],
    ) -> Iterator[list[Contribution]]:
        """The members of a round: its updates, late ones discounted, and what that leaves."""
        rules = spec.rounds
        mixes = rules.engine is RoundEngine.ASYNC
        discount = Discount(
            mixing=rules.mixing if mixes else 1.0,
            exponent=rules.staleness_exponent,
            rebases=not mixes,
        )
        late = {u.base_version for u in updates if u.staleness}
        # Each is read once, to be sure of its bytes, however many updates began from it.
        began = {version: self._versions.begun(spec, bases[version]) for version in sorted(late)}
        began = {u.base_version: before for u in updates} | began
        given = [
            LateContribution(
                contribution=contribution,
                staleness=update.staleness,
                base=began[update.base_version],
            )
            for update, contribution in zip(
                updates, self._versions.contributions(spec, updates, began), strict=True
            )
        ]
        with cohort_of(
            given,
            discount=discount,
            before=before,
            in_products=recipe.properties.gauge_free,
            temporary=self._blobs.new_temporary,
        ) as members:
            yield members

    def _context(
        self, spec: RunSpec, round: int, base: AdapterRecord
    ) -> tuple[StoredAdapter, RoundContext]:
        start = self._versions.begun(spec, base)
        state = self._versions.verified(base.state_digest) if base.state_digest else None
        return start, RoundContext(round=round, kind=spec.adapter.kind, start=start, state=state)

    def _frozen(self, recipe: Recipe, state: RunState) -> BaseWeights | None:
        """The frozen weights, where the recipe reads them and they are the run's."""
        spec, layout, weights = state.spec, state.layout, self._base_weights
        if weights is None or layout is None or spec.adapter.kind not in recipe.method.reads_base:
            return None
        if state.run_id not in self._checked:
            weights.check_modules(layout.modules)
            trained = spec.adapter.modules_to_save
            weights.check_fingerprint(layout.base_fingerprint, trained=trained)
            self._checked.add(state.run_id)
        return weights

    async def _run(
        self,
        executor: ThreadPoolExecutor,
        work: Callable[[], T],
        *,
        unused: Callable[[T], object] = lambda _: None,
    ) -> T:
        """What work returns; `unused` is told of it where the caller has gone away by then."""

        def mapped() -> T:
            # Files are written all along: a disk that refuses is no mistake of ours.
            with mapped_errors():
                return work()

        made = executor.submit(mapped)
        try:
            return await asyncio.wrap_future(made)
        except asyncio.CancelledError:
            # Work that has begun goes on.
            made.add_done_callback(lambda done: _has_result(done) and unused(done.result()))
            raise


def _has_result(done: Future[T]) -> bool:
    return not done.cancelled() and done.exception() is None


def aggregated_in(store: StateStore, run_id: str, round: int) -> AdapterRecord:
    """The version that a round's aggregation came to, found in a few reads.

    Every round publishes at least one version, so it is no earlier than any that is looked at here.
    A run of ten thousand rounds has as many versions, each with figures of every layer.
    """
    version = round
    while (found := store.adapter(run_id, version)) is not None and found.round < round:
        version += round - found.round
    if found is None:
        raise AssertionError(f"round {round} has published no version")
    return found


async def _versions(
    store: ThreadedStore, run_id: str, versions: Collection[int]
) -> dict[int, AdapterRecord]:
    """Published versions by number."""
    records = await store.call(lambda s: [s.adapter(run_id, v) for v in sorted(versions)])
    return {record.version: record for record in records if record is not None}
