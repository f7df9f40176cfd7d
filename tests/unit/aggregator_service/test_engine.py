from __future__ import annotations

from support.memory_store import InMemoryStateStore
from support.runs import run_spec

from aggregator_service.engine import aggregated_in
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState


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
