from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
from support.builders import write_update
from support.memory_store import InMemoryStateStore
from support.runs import run_spec

from aggregator_service.engine import AggregationEngine, aggregated_in
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState
from aggregator_service.store.blobs import BlobStore
from aggregator_service.worker_copies import servable_blob


class CountingStore(InMemoryStateStore):
    """Counts the versions that are read."""

    read = 0

    def adapter(self, run_id: str, version: int) -> AdapterRecord | None:
        self.read += 1
        return super().adapter(run_id, version)


def version(number: int, round: int, *, is_refinement: bool = False) -> AdapterRecord:
    return AdapterRecord(
        version=number,
        round=round,
        digest="0" * 64,
        total_bytes=1,
        rank=4,
        is_refinement=is_refinement,
    )


@pytest.mark.parametrize("gives_up", [False, True])
async def test_an_export_that_is_given_up_keeps_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gives_up: bool
):
    blobs = BlobStore(tmp_path)
    # Of two ranks, so that PEFT is given a file of its own.
    digest = blobs.adopt(write_update(tmp_path / "a", seed=1, ranks={"encoder.0.query": 2}))
    engine, begun, goes_on = AggregationEngine(blobs, device="cpu"), Event(), Event()

    def folded(*given: object) -> tuple[str, int]:
        begun.set()
        assert goes_on.wait(30)
        return servable_blob(*given)

    monkeypatch.setattr("aggregator_service.engine.servable_blob", folded)
    record = replace(version(1, 1), digest=digest)
    export = asyncio.create_task(engine.servable(run_spec(), record))
    assert await asyncio.to_thread(begun.wait, 30)
    if gives_up:
        export.cancel()
    # The client's call ends before the thread does.
    await asyncio.sleep(0)
    goes_on.set()
    (ended,) = await asyncio.gather(export, return_exceptions=True)
    await asyncio.to_thread(engine.close)
    assert blobs.sweep(lambda: ()).num_files == gives_up
    if not gives_up:
        blobs.release(ended[0])
        assert blobs.sweep(lambda: ()).num_files == 1


def test_what_a_round_aggregated_is_found_without_reading_every_version():
    store, adapters = CountingStore(), [version(0, 0)]
    for round in range(1, 301):
        adapters.append(version(len(adapters), round))
        # As where the worker with the server's data comes late, and goes early.
        if 20 < round <= 200:
            adapters.append(version(len(adapters), round, is_refinement=True))
    state = RunState(run_id="r", spec=run_spec(), created_at=0.0)
    store.commit(Transaction(state=state, clock=0.0, adapters=tuple(adapters)))
    aggregated = {a.round: a for a in adapters if not a.is_refinement}
    for round in range(1, 301):
        store.read = 0
        assert aggregated_in(store, "r", round) == aggregated[round]
        assert store.read <= 10
