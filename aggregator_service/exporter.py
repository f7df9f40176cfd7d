"""Keeps the run directories for people up to date, behind the runs and never in their way.

Everything it writes can be written again from the store, so it may lose its work at any moment: a
restarted server begins by writing all of it anew (`restore`).
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from aggregator_service.engine import servable_blob
from aggregator_service.reporting.run_directory import RunDirectory
from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.rounds.summary import describe
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from fedlora.runs.report import EventType, RoundReport, RunEvent

__all__ = ["RunExporter"]

log = structlog.get_logger(__name__)

_EVENTS_A_PAGE = 1000


class RunExporter:
    """Writes run directories: `<export_dir>/<run name>/`.

    Args:
        export_dir: where they go; None writes nothing.
        blobs: where adapters are read.
    """

    def __init__(self, export_dir: Path | None, blobs: BlobStore) -> None:
        self._export_dir = export_dir
        self._blobs = blobs
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="export")
        self._reports: dict[str, dict[int, RoundReport]] = {}

    # --- told by the runs, on the event loop ---------------------------------------------

    def committed(
        self, state: RunState, events: Sequence[RunEvent], reports: Sequence[RoundReport]
    ) -> None:
        """Queues what has become durable."""
        if self._export_dir is not None and (events or reports):
            self._submit(functools.partial(self._write, state, tuple(events), tuple(reports)))

    async def restore(self, state: RunState, store: ThreadedStore) -> None:
        """Queues all of a stored run."""
        if self._export_dir is None:
            return
        run_id, events = state.run_id, list[RunEvent]()
        while page := await store.call(functools.partial(_page, run_id, len(events) + 1)):
            events += page
        reports = await store.call(lambda s: s.reports(run_id))
        adapters = await store.call(lambda s: s.adapters(run_id))
        self._submit(functools.partial(self._restore, state, tuple(events), reports, adapters))

    async def close(self) -> None:
        """Writes what is queued, then ends."""
        await asyncio.to_thread(self._thread.shutdown)

    def _submit(self, work: Callable[[], None]) -> None:
        self._thread.submit(self._guarded, work)

    # --- in the exporter's thread --------------------------------------------------------

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            # A full disk for reports must not stop a run; a restart writes them again.
            log.exception("export_failed", export_dir=str(self._export_dir))

    def _write(
        self, state: RunState, events: tuple[RunEvent, ...], reports: tuple[RoundReport, ...]
    ) -> None:
        directory = self._directory(state)
        if any(e.type is EventType.RUN_CREATED for e in events):
            directory.write_config(state.spec)
        for event in events:
            directory.append_event(event)
        for event in events:
            if event.type is EventType.ADAPTER_PUBLISHED and state.adapter is not None:
                self._export(directory, state, state.adapter)
        known = self._reports.setdefault(state.run_id, {})
        known |= {r.round: r for r in reports}
        for report in reports:
            directory.append_metrics(report)
        self._finish(directory, state, changed=bool(reports))

    def _restore(
        self,
        state: RunState,
        events: tuple[RunEvent, ...],
        reports: tuple[RoundReport, ...],
        adapters: tuple[AdapterRecord, ...],
    ) -> None:
        directory = self._directory(state)
        directory.write_config(state.spec)
        for event in events:
            directory.append_event(event)
        for adapter in adapters:
            self._export(directory, state, adapter)
        self._reports[state.run_id] = {r.round: r for r in reports}
        for report in reports:
            directory.append_metrics(report)
        self._finish(directory, state, changed=True)

    def _finish(self, directory: RunDirectory, state: RunState, *, changed: bool) -> None:
        if state.phase.is_final and state.adapter is not None:
            self._export(directory, state, state.adapter, "final")
        if changed or state.phase.is_final:
            known = self._reports.get(state.run_id, {})
            directory.write_report(describe(state), [known[r] for r in sorted(known)])

    def _export(
        self, directory: RunDirectory, state: RunState, adapter: AdapterRecord, name: str = ""
    ) -> None:
        spec = state.spec.adapter
        sha256, rank = servable_blob(self._blobs, adapter.sha256, spec.scaling)
        name = name or f"rounds/{adapter.round:04d}"
        directory.export_adapter(name, self._blobs.path(sha256), spec, rank)

    def _directory(self, state: RunState) -> RunDirectory:
        if self._export_dir is None:
            raise AssertionError("nothing is queued without an export directory")
        return RunDirectory(self._export_dir / state.spec.name)


def _page(run_id: str, first_sequence: int, store: StateStore) -> tuple[RunEvent, ...]:
    return store.events(run_id, first_sequence=first_sequence, limit=_EVENTS_A_PAGE)
