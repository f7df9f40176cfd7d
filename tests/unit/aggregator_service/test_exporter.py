"""A run directory comes to be what the store says, whatever happened to it or to the exporter."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save
from support.federation import random_adapter
from support.memory_store import InMemoryStateStore
from support.runs import LAYOUT, run_spec
from support.sample_run import sample_certificate, sample_round
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aggregator_service import exporter as exporter_module
from aggregator_service.exporter import RunExporter
from aggregator_service.reporting.run_directory import RunDirectory, read_events, read_rounds
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.threaded import ThreadedStore
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import BestRound, EventType, RoundReport, RunEvent
from fedlora.runs.rounds import FinalVersion

NAME = "test"
FINAL = 6
"""rounds of the run"""


class CountingStore(InMemoryStateStore):
    """Counts the rounds that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def report(self, run_id: str, round: int) -> RoundReport | None:
        self.read += 1
        return super().report(run_id, round)


class History:
    """A run that has been, and a server that tells its exporter of it step by step."""

    def __init__(self, root: Path, *, first_event_at: float = 0.0) -> None:
        self.started = first_event_at
        self.restored_after = 1000
        """number of the last event of a backup; what followed it came at other times"""
        self.root = root / "runs"
        self.directory = self.root / NAME
        self.store = CountingStore()
        self.threaded = ThreadedStore(lambda: self.store)
        self.blobs = BlobStore(root / "state")
        self.state = RunState(run_id="r", spec=run_spec(NAME), created_at=0.0, layout=LAYOUT)

    @asynccontextmanager
    async def exporter(self, *, tensorboard: bool = False) -> AsyncIterator[RunExporter]:
        exporter = RunExporter(self.root, self.blobs, self.threaded, tensorboard=tensorboard)
        try:
            yield exporter
        finally:
            await exporter.close()

    def steps(self) -> list[tuple[RunState, tuple[RunEvent, ...], tuple[RoundReport, ...]]]:
        """Commits the whole run, and returns what an exporter is told."""
        told = [self._commit(RunPhase.TRAINING, 0, EventType.RUN_CREATED)]
        for round in range(1, FINAL + 1):
            told.append(self._commit(RunPhase.TRAINING, round, EventType.ROUND_STARTED))
            told.append(self._publish(round))
            bare = sample_round(round, certified=False)
            told.append(
                self._commit(RunPhase.TRAINING, round, EventType.ROUND_COMPLETED, reports=(bare,))
            )
            told.append(
                self._commit(
                    RunPhase.TRAINING,
                    round,
                    EventType.CERTIFICATE_READY,
                    certificates=((round, sample_certificate(round)),),
                )
            )
        told.append(self._commit(RunPhase.COMPLETED, FINAL, EventType.RUN_COMPLETED))
        return told

    def _publish(self, round: int):
        path = self.blobs.new_temporary()
        path.write_bytes(save(random_adapter(4, seed=round), {"format": "pt"}))
        adapter = AdapterRecord(
            version=round, round=round, digest=self.blobs.adopt(path), total_bytes=9, rank=4
        )
        self.state = replace(self.state, adapter=adapter, version=round)
        return self._commit(
            RunPhase.TRAINING, round, EventType.ADAPTER_PUBLISHED, adapters=(adapter,)
        )

    def _commit(self, phase: RunPhase, round: int, event_type: EventType, **parts):
        sequence = self.state.last_sequence + 1
        detail = {"adapter_version": round} if "adapters" in parts else {}
        # Rounds are two minutes apart, so most of them are settled.
        event = RunEvent(
            sequence=sequence,
            type=event_type,
            time=self.started + 120.0 * round + 9.0 * (sequence > self.restored_after),
            round=round,
            detail=detail,
        )
        self.state = replace(self.state, phase=phase, round=round, last_sequence=sequence)
        self.store.commit(Transaction(state=self.state, clock=1.0, events=(event,), **parts))
        changed = self.store.report("r", round) if {"reports", "certificates"} & {*parts} else None
        return self.state, (event,), (changed,) if changed else ()


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


async def all_written(exporter: RunExporter) -> None:
    """Returns once all that was queued is done; closing would end what is far behind."""
    await asyncio.wrap_future(exporter._thread.submit(lambda: None))


async def written(history: History) -> dict[str, bytes]:
    """The directory, written by an exporter that was never disturbed."""
    async with history.exporter() as exporter:
        for step in history.steps():
            exporter.committed(*step)
    return contents(history.directory)


async def restored(history: History) -> dict[str, bytes]:
    history.store.read = 0
    async with history.exporter() as exporter:
        exporter.restore(history.state)
        await all_written(exporter)
    return contents(history.directory)


async def test_a_run_is_written_as_it_goes(history: History):
    files = await written(history)
    assert [e.sequence for e in read_events(history.directory)] == list(range(1, 27))
    assert read_rounds(history.directory) == tuple(sample_round(r) for r in range(1, FINAL + 1))
    weights = "adapter_model.safetensors"
    folders = {Path(f).parent.as_posix() for f in files if Path(f).name == weights}
    assert folders == {"final", *(f"rounds/{r:04d}" for r in range(1, FINAL + 1))}
    assert files[f"final/{weights}"] == files[f"rounds/{FINAL:04d}/{weights}"]
    assert RunDirectory(history.directory).has_report


async def test_a_run_may_end_with_the_version_of_its_best_round(history: History):
    rounds = replace(
        history.state.spec.rounds, best_by="test_accuracy", final_version=FinalVersion.BEST
    )
    best = BestRound(round=4, adapter_version=4, metric="test_accuracy", value=0.9)
    history.state = replace(
        history.state, spec=replace(history.state.spec, rounds=rounds), best=best
    )
    files = await written(history)
    weights = "adapter_model.safetensors"
    assert files[f"final/{weights}"] == files[f"rounds/0004/{weights}"]
    shutil.rmtree(history.directory)
    assert await restored(history) == files


async def test_a_directory_that_is_gone_is_written_again(history: History):
    files = await written(history)
    shutil.rmtree(history.directory)
    assert await restored(history) == files


async def test_of_a_directory_that_is_complete_next_to_nothing_is_read(history: History):
    files = await written(history)
    assert await restored(history) == files
    # The last round, which may not have reached the disk before a power cut.
    assert history.store.read == 1


@pytest.mark.parametrize("kept", range(27))
async def test_an_exporter_that_was_killed_anywhere_is_made_good(history: History, kept: int):
    told = history.steps()
    async with history.exporter() as exporter:
        for step in told:
            exporter.committed(*step)
    files = contents(history.directory)
    shutil.rmtree(history.directory)
    async with history.exporter() as exporter:
        for step in told[:kept]:
            exporter.committed(*step)
    assert await restored(history) == files


async def test_what_was_written_within_a_minute_of_a_power_cut_is_written_again(history: History):
    files = await written(history)
    (history.directory / "rounds" / "0006" / "adapter_model.safetensors").unlink()
    metrics = history.directory / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-100])
    assert await restored(history) == files


async def test_events_that_an_exporter_missed_are_fetched(history: History):
    told = history.steps()
    async with history.exporter() as exporter:
        for step in (told[0], *told[9:12], told[20], told[-1]):
            exporter.committed(*step)
        await all_written(exporter)
    files = contents(history.directory)
    shutil.rmtree(history.directory)
    assert await restored(history) == files


async def test_a_disk_that_is_full_for_a_while_leaves_no_gap(history: History, monkeypatch):
    told = history.steps()
    full = {7, 8, 15}

    def append_or_fail(directory: RunDirectory, events) -> None:
        if full & {e.sequence for e in events}:
            full.difference_update(e.sequence for e in events)
            raise OSError(28, "No space left on device")
        append(directory, events)

    append = RunDirectory.append_events
    monkeypatch.setattr(RunDirectory, "append_events", append_or_fail)
    async with history.exporter() as exporter:
        for step in told:
            exporter.committed(*step)
            await all_written(exporter)
    files = contents(history.directory)
    assert not full
    monkeypatch.undo()
    shutil.rmtree(history.directory)
    assert await restored(history) == files


async def test_what_comes_while_something_is_written_is_written_together(
    history: History, monkeypatch: pytest.MonkeyPatch
):
    first, *others = history.steps()
    written_at_a_time, reached, go_on = [], threading.Event(), threading.Event()

    def append_slowly(directory: RunDirectory, events) -> None:
        written_at_a_time.append(len(events))
        reached.set()
        assert go_on.wait(30)
        append(directory, events)

    append = RunDirectory.append_events
    monkeypatch.setattr(RunDirectory, "append_events", append_slowly)
    async with history.exporter() as exporter:
        exporter.committed(*first)
        await asyncio.to_thread(reached.wait, 30)
        for step in others:
            exporter.committed(*step)
        go_on.set()
        await all_written(exporter)
    assert written_at_a_time == [1, len(others)]
    files = contents(history.directory)
    monkeypatch.undo()
    shutil.rmtree(history.directory)
    assert await restored(history) == files


async def test_the_files_of_another_run_of_that_name_are_not_mixed_with_ours(
    history: History, tmp_path: Path
):
    await written(history)
    other = History(tmp_path / "other", first_event_at=7.0)
    other.root, other.directory = history.root, history.directory
    told = other.steps()
    async with other.exporter() as exporter:
        for step in told[:5]:
            exporter.committed(*step)
    assert read_events(history.directory) == tuple(events[0] for _, events, _ in told[:5])
    assert [r.round for r in read_rounds(history.directory)] == [1]


@pytest.mark.parametrize("kept", [3, 15])
async def test_what_a_run_did_before_its_state_was_restored_is_not_kept(
    history: History, tmp_path: Path, kept: int
):
    await written(history)
    # From a backup of its first events the run has gone on, another way.
    restored_run = History(tmp_path / "restored")
    restored_run.root, restored_run.directory = history.root, history.directory
    restored_run.restored_after = kept
    told = restored_run.steps()
    async with restored_run.exporter() as exporter:
        exporter.restore(told[kept - 1][0])
        for step in told[kept:]:
            exporter.committed(*step)
        await all_written(exporter)
    assert read_events(history.directory) == tuple(events[0] for _, events, _ in told)
    assert [r.round for r in read_rounds(history.directory)] == [1, 2, 3, 4, 5, 6]


async def test_an_exporter_far_behind_is_closed_at_once_and_goes_on_next_time(
    history: History, monkeypatch: pytest.MonkeyPatch
):
    files = await written(history)
    shutil.rmtree(history.directory)
    monkeypatch.setattr(exporter_module, "_EVENTS_AT_A_TIME", 3)
    reached, go_on = threading.Event(), threading.Event()
    report = history.store.report

    def slow(run_id: str, round: int) -> RoundReport | None:
        if round == 3:
            reached.set()
            assert go_on.wait(30)
        return report(run_id, round)

    monkeypatch.setattr(history.store, "report", slow)
    exporter = RunExporter(history.root, history.blobs, history.threaded)
    exporter.restore(history.state)
    await asyncio.to_thread(reached.wait, 30)
    closing = asyncio.ensure_future(exporter.close())
    await asyncio.to_thread(exporter._closing.wait, 30)
    go_on.set()
    await closing
    assert 0 < RunDirectory(history.directory).last_sequence < 26
    assert await restored(history) == files


async def test_nothing_is_read_or_written_without_a_directory(history: History):
    told = history.steps()
    history.store.read = 0
    exporter = RunExporter(None, history.blobs, history.threaded)
    exporter.restore(history.state)
    exporter.committed(*told[-1])
    await exporter.close()
    assert history.store.read == 0
    assert not history.root.exists()


# --- TensorBoard ---------------------------------------------------------------------------


def rounds_on_the_board(history: History) -> list[int]:
    board = EventAccumulator(str(history.directory / "tensorboard")).Reload()
    return [scalar.step for scalar in board.Scalars("bytes/up")]


async def test_event_files_hold_each_round_once_over_a_restart(history: History):
    told = history.steps()
    for steps in (told[:10], told):
        async with history.exporter(tensorboard=True) as exporter:
            for step in steps:
                exporter.committed(*step)
            await all_written(exporter)
    assert rounds_on_the_board(history) == list(range(1, FINAL + 1))


async def test_rounds_from_before_event_files_were_wanted_are_in_them(history: History):
    await written(history)
    assert not (history.directory / "tensorboard").exists()
    async with history.exporter(tensorboard=True) as exporter:
        exporter.restore(history.state)
        await all_written(exporter)
    assert rounds_on_the_board(history) == list(range(1, FINAL + 1))


async def test_the_event_files_of_another_run_of_that_name_are_gone(
    history: History, tmp_path: Path
):
    async with history.exporter(tensorboard=True) as exporter:
        for step in history.steps():
            exporter.committed(*step)
    other = History(tmp_path / "other", first_event_at=7.0)
    other.root, other.directory = history.root, history.directory
    told = other.steps()
    async with other.exporter(tensorboard=True) as exporter:
        for step in told[:5]:
            exporter.committed(*step)
    assert rounds_on_the_board(other) == [1]
