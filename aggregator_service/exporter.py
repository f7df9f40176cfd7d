"""Keeps the run directories for people up to date, behind the runs and never in their way.

Everything it writes comes from the store, so it may lose its work at any moment. A run directory
says itself how far it is; what it lacks, all of it where the folder is gone, is read from the store
piece by piece in the exporter's own thread, while the server serves.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import structlog

from aggregator_service.reporting.event_files import EventFiles, require_tensorboard
from aggregator_service.reporting.run_directory import (
    TENSORBOARD,
    RunDirectory,
    read_events,
    read_rounds,
)
from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.rounds.summary import describe
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.worker_copies import servable_blob
from fedlora.runs.report import EventType, RoundReport, RunEvent
from fedlora.runs.rounds import FinalVersion
from fedlora.telemetry.logs import bind_context

__all__ = ["RunExporter"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

# One call of the store, behind which an update may wait, takes some 10 ms for as many.
_EVENTS_AT_A_TIME = 100
_REPORTS_AT_A_TIME = 20

_PAGE_SHARE = 0.1
"""of the time; the report's page shows all rounds, so writing it takes longer with each"""

_REPORTED = (EventType.ROUND_COMPLETED, EventType.CERTIFICATE_READY)


@dataclass(slots=True)
class _Export:
    """A run, as far as its directory holds it."""

    directory: RunDirectory
    scalars: EventFiles | None
    """the same numbers for TensorBoard, where they are wanted"""
    found: int
    """number of the last event in the directory when this process came"""
    last: int
    """number of the last event of which everything is written"""
    reports: dict[int, RoundReport] = field(default_factory=dict)
    """by round; those of earlier processes are read once the page needs them"""
    stale: bool = False
    """the page lacks a round"""
    page_due: float = 0.0
    waiting: RunState | None = None
    """what the page is to show once it is due"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _News:
    """Events, and what they have brought."""

    events: tuple[RunEvent, ...]
    adapters: tuple[AdapterRecord, ...]
    reports: Mapping[int, RoundReport]
    """by round"""

    def and_then(self, later: _News) -> _News:
        """Both, as one."""
        return _News(
            events=(*self.events, *later.events),
            adapters=(*self.adapters, *later.adapters),
            reports={**self.reports, **later.reports},
        )


class RunExporter:
    """Writes run directories: `<export_dir>/<run name>/`. Made on the event loop.

    Args:
        export_dir: where they go; None writes nothing.
        blobs: where adapters are read.
        store: where everything else is read.
        tensorboard: write event files too.

    Raises:
        FedLoraError: MISSING_EXTRA if event files are wanted and the package is not there.
    """

    def __init__(
        self,
        export_dir: Path | None,
        blobs: BlobStore,
        store: ThreadedStore,
        *,
        tensorboard: bool = False,
    ) -> None:
        if tensorboard:
            require_tensorboard()
        self._tensorboard = tensorboard
        self._export_dir = export_dir
        self._blobs = blobs
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._closing = threading.Event()
        self._exports: dict[str, _Export] = {}
        self._queueing = threading.Lock()
        self._queued: dict[str, tuple[RunState, _News]] = {}
        """by run: what is yet to be written; commits come in crowds, and one writing serves all"""

    # --- told by the runs, on the event loop ---------------------------------------------

    def committed(
        self, state: RunState, events: Sequence[RunEvent], reports: Sequence[RoundReport]
    ) -> None:
        """Queues what has become durable."""
        if self._export_dir is None or not (events or reports):
            return
        published = any(e.type is EventType.ADAPTER_PUBLISHED for e in events)
        adapters = (state.adapter,) if published and state.adapter else ()
        by_round = {report.round: report for report in reports}
        news = _News(events=tuple(events), adapters=adapters, reports=by_round)
        with self._queueing:
            _, earlier = self._queued.get(state.run_id, (state, None))
            self._queued[state.run_id] = (state, earlier.and_then(news) if earlier else news)
        if earlier is None:
            self._submit(functools.partial(self._write, state.run_id))

    def restore(self, state: RunState) -> None:
        """Queues what the directory of a stored run lacks."""
        self._submit(functools.partial(self._catch_up, state))

    async def close(self) -> None:
        """Writes what is queued, then ends; a directory that is far behind stays behind."""
        self._closing.set()
        self._submit(self._write_waiting)
        await asyncio.to_thread(self._thread.shutdown)

    def _due(self, export: _Export) -> None:
        if not self._closing.is_set():
            self._submit(functools.partial(self._write_due, export))

    def _submit(self, work: Callable[[], None]) -> None:
        if self._export_dir is not None:
            self._thread.submit(self._guarded, work)

    # --- in the exporter's thread --------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            # A full disk for reports must not stop a run; the next event finds the gap.
            log.exception("export_failed", export_dir=str(self._export_dir))

    def _write(self, run_id: str) -> None:
        with self._queueing:
            state, news = self._queued.pop(run_id)
        bind_context(run=state.spec.name)
        export = self._opened(state)
        if news.events and news.events[0].sequence != export.last + 1:
            # After a failure, or while a directory that was behind overtook what was queued.
            self._catch_up(state)
            return
        self._advance(export, state, news)

    def _catch_up(self, state: RunState) -> None:
        """Writes what the store has and the directory lacks."""
        bind_context(run=state.spec.name)
        export = self._opened(state)
        while export.last < state.last_sequence:
            if self._closing.is_set():
                return
            news = self._ask(functools.partial(_news_after, state.run_id, export.last))
            self._advance(export, state, news)
        self._finish(export, state)

    def _advance(self, export: _Export, state: RunState, news: _News) -> None:
        """Writes what events have brought, and then the events."""
        for adapter in news.adapters:
            self._export(export.directory, state, adapter)
        export.reports |= news.reports
        reports = tuple(news.reports.values())
        export.directory.append_metrics(reports)
        if export.scalars is not None:
            export.scalars.write(reports, _times(news.events))
        export.stale |= any(e.type in _REPORTED and e.sequence > export.found for e in news.events)
        last = max([export.last, *(e.sequence for e in news.events)])
        if last >= state.last_sequence:
            self._finish(export, state)
        export.directory.append_events(news.events)
        export.last = last

    def _finish(self, export: _Export, state: RunState) -> None:
        """Writes what shows the run as a whole."""
        directory, final = export.directory, state.phase.is_final
        if final and (adapter := self._final(state)) is not None:
            self._export(directory, state, adapter, "final")
        if final or not directory.has_report:
            export.stale |= not directory.is_shown(describe(state))
        wait = export.page_due - time.monotonic()
        if not export.stale:
            return
        if final or wait <= 0:
            self._write_page(export, state)
        else:
            if export.waiting is None:
                self._loop.call_soon_threadsafe(self._loop.call_later, wait, self._due, export)
            export.waiting = state

    def _write_due(self, export: _Export) -> None:
        if export.waiting is not None:
            bind_context(run=export.waiting.spec.name)
            self._write_page(export, export.waiting)

    def _write_waiting(self) -> None:
        for export in self._exports.values():
            self._write_due(export)

    def _write_page(self, export: _Export, state: RunState) -> None:
        began = time.monotonic()
        missing = [r for r in range(1, state.round + 1) if r not in export.reports]
        for i in range(0, len(missing), _REPORTS_AT_A_TIME):
            if self._closing.is_set():
                return
            some = missing[i : i + _REPORTS_AT_A_TIME]
            found = self._ask(functools.partial(_reports_of, state.run_id, some))
            export.reports |= found
        rounds = [export.reports[r] for r in sorted(export.reports)]
        export.directory.write_report(describe(state), rounds)
        export.stale, export.waiting = False, None
        ended = time.monotonic()
        export.page_due = ended + (ended - began) / _PAGE_SHARE

    def _opened(self, state: RunState) -> _Export:
        if self._export_dir is None:
            raise AssertionError("nothing is queued without an export directory")
        if state.run_id not in self._exports:
            directory = RunDirectory(self._export_dir / state.spec.name)
            found, last = directory.begin(
                lambda number: self._ask(functools.partial(_event, state.run_id, number))
            )
            directory.write_config(state.spec)
            scalars = self._begin_scalars(directory) if self._tensorboard else None
            self._exports[state.run_id] = _Export(
                directory=directory, scalars=scalars, found=found, last=last
            )
        return self._exports[state.run_id]

    def _begin_scalars(self, directory: RunDirectory) -> EventFiles:
        """Event files with the rounds that the directory has from before they were wanted."""
        scalars = EventFiles(directory.root / TENSORBOARD)
        times = _times(read_events(directory.root))
        # A round whose event is not there yet is told again.
        told = [report for report in read_rounds(directory.root) if report.round in times]
        scalars.write(told, times)
        return scalars

    def _final(self, state: RunState) -> AdapterRecord | None:
        """The version that the run ends with."""
        wants_best = state.spec.rounds.final_version is FinalVersion.BEST
        if state.best is None or not wants_best:
            return state.adapter
        version = state.best.adapter_version
        return self._ask(lambda store: store.adapter(state.run_id, version))

    def _export(
        self, directory: RunDirectory, state: RunState, adapter: AdapterRecord, name: str = ""
    ) -> None:
        spec = state.spec.adapter
        digest, rank = servable_blob(self._blobs, adapter.digest, spec.scaling)
        name = name or f"rounds/{adapter.round:04d}"
        try:
            directory.export_adapter(name, self._blobs.path(digest), spec, rank)
        finally:
            self._blobs.release(digest)

    def _ask(self, work: Callable[[StateStore], T]) -> T:
        return asyncio.run_coroutine_threadsafe(self._store.call(work), self._loop).result()


def _times(events: Sequence[RunEvent]) -> dict[int, float]:
    """When rounds were completed or certified, whichever came last."""
    return {event.round: event.time for event in events if event.type in _REPORTED}


# --- in the store's thread ----------------------------------------------------------------


def _event(run_id: str, sequence: int, store: StateStore) -> RunEvent | None:
    # Numbers have no gaps.
    return next(iter(store.events(run_id, first_sequence=sequence, limit=1)), None)


def _news_after(run_id: str, sequence: int, store: StateStore) -> _News:
    events = store.events(run_id, first_sequence=sequence + 1, limit=_EVENTS_AT_A_TIME)
    published = [e for e in events if e.type is EventType.ADAPTER_PUBLISHED]
    adapters = [store.adapter(run_id, int(str(e.detail["adapter_version"]))) for e in published]
    rounds = sorted({e.round for e in events if e.type in _REPORTED})
    return _News(
        events=events,
        adapters=tuple(a for a in adapters if a is not None),
        reports=_reports_of(run_id, rounds, store),
    )


def _reports_of(run_id: str, rounds: Sequence[int], store: StateStore) -> Mapping[int, RoundReport]:
    found = (store.report(run_id, round) for round in rounds)
    return {report.round: report for report in found if report is not None}
