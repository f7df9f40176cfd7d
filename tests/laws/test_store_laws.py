"""Every StateStore keeps the same promises (rounds/ports.py), and the two agree step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.memory_store import InMemoryStateStore
from support.runs import LAYOUT, MachineDriver, run_spec
from support.sample_run import sample_certificate, sample_round

from aggregator_service.rounds.ports import StateStore, Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord, WorkerRecord
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import MethodSpec
from fedlora.runs.report import EventType, RunEvent, WorkerState
from fedlora.runs.tasks import Capabilities, Evaluation, EvaluationScope, EvaluationSplit

STORES: dict[str, Callable[[Path], StateStore]] = {
    "memory": lambda _: InMemoryStateStore(),
    "sqlite": lambda folder: SqliteStateStore(folder / "state.db"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StateStore]:
    store = STORES[request.param](tmp_path)
    yield store
    store.close()


@pytest.fixture(scope="module")
def driver() -> MachineDriver:
    """A run in the middle of its first round."""
    driver = MachineDriver(run_spec(slots=2))
    driver.start_training("w-0", "w-1")
    driver.commit("w-0")
    return driver


@pytest.fixture
def state(driver: MachineDriver) -> RunState:
    return driver.state


def event(sequence: int, **changes: object) -> RunEvent:
    fields = {"type": EventType.ROUND_STARTED, "time": 1.5, "detail": {"cohort": ["a"]}, **changes}
    return RunEvent(sequence=sequence, **fields)


def update(number: int = 0, *, round: int = 1, worker: str = "", key: str = "") -> UpdateRecord:
    return UpdateRecord(
        update_id=f"u-{number}",
        round=round,
        worker=worker or f"w-{number}",
        idempotency_key=key or f"k-{number}",
        digest=f"{number:064d}",
        total_bytes=100,
        base_version=0,
        rank=4,
        num_examples=10,
        metrics={"train_loss": 0.1 + 0.2, "nothing": math.inf},
        evaluations=(
            Evaluation(
                scope=EvaluationScope.LOCAL,
                split=EvaluationSplit.HELD_OUT,
                num_examples=3,
                metrics={"accuracy": 1.0},
            ),
        ),
        elapsed_seconds=1 / 3,
    )


def adapter(version: int, digest: str = "a" * 64, memory: str = "") -> AdapterRecord:
    return AdapterRecord(
        version=version,
        round=version,
        digest=digest,
        state_digest=memory,
        total_bytes=9,
        rank=4,
        measurements={"encoder.0": {"sweeps": 3.0}},
    )


def commit(store: StateStore, state: RunState, clock: float = 1.0, **parts: object) -> None:
    store.commit(Transaction(state=state, clock=clock, **parts))


def refused(store: StateStore, state: RunState, **parts: object) -> None:
    """The transaction is refused with ALREADY_EXISTS and changes nothing that can be read."""
    before = contents(store)
    changed = replace(state, reason="must not be stored")
    with pytest.raises(FedLoraError) as caught:
        commit(store, changed, 99.0, **parts)
    assert caught.value.reason is Reason.ALREADY_EXISTS
    assert contents(store) == before


def contents(store: StateStore) -> object:
    """All that a store gives out. Certificates as text, since a NaN equals nothing."""
    runs = store.load_runs()
    ids = [state.run_id for state, _ in runs]
    return (
        runs,
        [store.events(i, limit=10**6) for i in ids],
        [[store.updates(i, r) for r in range(4)] for i in ids],
        [store.adapters(i) for i in ids],
        [repr(store.reports(i)) for i in ids],
        [[repr(store.report(i, r)) for r in range(4)] for i in ids],
        [store.uncertified_rounds(i) for i in ids],
        [store.kept_rounds(i) for i in ids],
        sorted(store.named_blobs()),
    )


class TestRuns:
    def test_a_new_store_is_empty(self, store: StateStore):
        assert store.load_runs() == ()
        assert store.events("nobody") == ()
        assert store.updates("nobody", 1) == ()
        assert store.update_by_key("nobody", "k") is None
        assert store.adapter("nobody", 1) is None
        assert store.adapters("nobody") == ()
        assert store.reports("nobody") == ()
        assert store.report("nobody", 1) is None
        assert store.uncertified_rounds("nobody") == ()
        assert store.kept_rounds("nobody") == ()
        assert not store.named_blobs()

    def test_a_state_comes_back_equal_with_its_clock(self, store: StateStore, state: RunState):
        full = replace(
            state,
            layout=LAYOUT,
            adapter=adapter(3),
            updates={"w-0": update(0)},
            evaluations={"w-0": update(0).evaluations},
            phase_seconds={"training": 0.1},
            deadline=1 / 3,
            workers={
                "w-\u00e9": WorkerRecord(
                    name="w-\u00e9",
                    state=WorkerState.LOST,
                    epoch=2,
                    session_hash="h",
                    instance_id="i",
                    capabilities=Capabilities(device_name="\u0416", versions={"torch": "2"}),
                    rank=4,
                )
            },
            spec=replace(
                state.spec,
                method=MethodSpec(options={"f": 1.0, "i": 1, "b": True, "s": "1"}),
                seed=2**63 - 1,
            ),
        )
        commit(store, full, 0.1 + 0.2)
        ((again, clock),) = store.load_runs()
        assert again == full
        assert clock == 0.1 + 0.2
        options = again.spec.method.options
        assert {k: type(v) for k, v in options.items()} == {
            "f": float,
            "i": int,
            "b": bool,
            "s": str,
        }

    def test_a_later_state_replaces_the_earlier_one(self, store: StateStore, state: RunState):
        commit(store, state, 1.0)
        later = replace(state, round=7)
        commit(store, later, 2.0)
        assert store.load_runs() == ((later, 2.0),)

    def test_runs_are_listed_oldest_first(self, store: StateStore, state: RunState):
        for i, created in enumerate((5.0, 1.0, 3.0)):
            spec = replace(state.spec, name=f"run-{i}")
            commit(store, replace(state, run_id=f"id-{i}", spec=spec, created_at=created))
        assert [s.run_id for s, _ in store.load_runs()] == ["id-1", "id-2", "id-0"]

    def test_a_second_run_of_one_name_is_refused(self, store: StateStore, state: RunState):
        commit(store, state)
        refused(store, replace(state, run_id="another"))

    def test_runs_do_not_see_each_other(self, store: StateStore, state: RunState):
        commit(store, state, events=(event(1),), updates=(update(1),), adapters=(adapter(1),))
        other = replace(state, run_id="other", spec=replace(state.spec, name="other"))
        commit(store, other, reports=(sample_round(1, certified=False),))
        assert store.events("other") == ()
        assert store.updates("other", 1) == ()
        assert store.update_by_key("other", "k-1") is None
        assert store.adapter("other", 1) is None
        assert store.reports(state.run_id) == ()


class TestUpdates:
    def test_an_update_comes_back_equal(self, store: StateStore, state: RunState):
        commit(store, state, updates=(update(1),))
        assert store.updates(state.run_id, 1) == (update(1),)
        assert store.update_by_key(state.run_id, "k-1") == update(1)

    def test_updates_of_a_round_are_sorted_by_worker(self, store: StateStore, state: RunState):
        names = ("w-10", "w-2", "W", "\u00e9", "a")
        rows = [update(i, worker=name) for i, name in enumerate(names)]
        commit(store, state, updates=tuple(rows))
        commit(store, state, updates=(update(9, round=2),))
        found = store.updates(state.run_id, 1)
        assert [u.worker for u in found] == sorted(names)

    @pytest.mark.parametrize(
        "second",
        [
            update(2, worker="w-1"),
            update(2, key="k-1"),
            update(2, round=2, key="k-1"),
            replace(update(2), update_id="u-1"),
        ],
        ids=["same worker and round", "same key", "same key, other round", "same id"],
    )
    def test_an_update_counts_once(self, store: StateStore, state: RunState, second: UpdateRecord):
        commit(store, state, updates=(update(1),))
        refused(store, state, updates=(second,))

    def test_twins_in_one_transaction_are_refused_too(self, store: StateStore, state: RunState):
        commit(store, state)
        refused(store, state, updates=(update(1), update(2, key="k-1")))

    def test_a_worker_may_update_every_round(self, store: StateStore, state: RunState):
        rounds = [update(r, round=r, worker="w") for r in range(1, 4)]
        commit(store, state, updates=tuple(rounds))
        assert [store.updates(state.run_id, r) for r in range(1, 4)] == [(u,) for u in rounds]


class TestFiles:
    @pytest.fixture
    def filled(self, store: StateStore, state: RunState) -> StateStore:
        """Three rounds, each built on a version with memory, and one update carried over."""
        versions = [adapter(v, f"{v}" * 64, f"m{v}" * 32) for v in range(4)]
        updates = [update(10 * r + w, round=r) for r in (1, 2, 3) for w in (1, 2)]
        carried = replace(update(99), round=4)
        state = replace(
            state,
            round=3,
            adapter=versions[3],
            updates={"w-31": updates[4]},
            carried={"w": carried},
        )
        commit(store, state, adapters=tuple(versions), updates=tuple(updates))
        return store

    def test_everything_is_named_until_it_is_dropped(self, filled: StateStore, state: RunState):
        assert filled.kept_rounds(state.run_id) == (1, 2, 3)
        assert filled.named_blobs() == {
            *(f"{v}" * 64 for v in range(4)),
            *(f"m{v}" * 32 for v in range(4)),
            *(update(n).digest for n in (11, 12, 21, 22, 31, 32, 99)),
        }

    def test_a_dropped_round_takes_its_updates_along_and_what_it_was_built_on_remembered(
        self, filled: StateStore, state: RunState
    ):
        before = contents(filled)[:7]
        filled.drop_updates(state.run_id, [1, 2])
        assert filled.kept_rounds(state.run_id) == (3,)
        named = set(filled.named_blobs())
        assert not named & {update(n).digest for n in (11, 12, 21, 22)}
        assert {update(n).digest for n in (31, 32, 99)} <= named
        assert {f"{v}" * 64 for v in range(4)} <= named, "a version stays"
        assert {d for d in named if d[0] == "m"} == {"m2" * 32, "m3" * 32}
        assert contents(filled)[:7] == before, "what is said of it stays"
        filled.drop_updates(state.run_id, [1, 2, 7])
        filled.drop_updates("nobody", [3])
        assert set(filled.named_blobs()) == named

    def test_a_round_that_waits_keeps_what_it_was_built_on(
        self, filled: StateStore, state: RunState
    ):
        filled.drop_updates(state.run_id, [1, 3])
        named = set(filled.named_blobs())
        assert {update(n).digest for n in (21, 22)} <= named
        assert {d for d in named if d[0] == "m"} == {"m1" * 32, "m2" * 32, "m3" * 32}
        assert update(31).digest in named, "the state of the run names it still"
        assert update(32).digest not in named

    def test_a_file_that_another_row_names_is_named(self, store: StateStore, state: RunState):
        same = replace(update(2, round=2), digest=update(1).digest)
        commit(store, state, updates=(update(1), same, replace(update(3), digest="a" * 64)))
        commit(store, state, adapters=(adapter(1),))
        store.drop_updates(state.run_id, [1])
        assert {update(1).digest, "a" * 64} <= set(store.named_blobs())


class TestHistory:
    def test_events_are_paged_from_any_sequence(self, store: StateStore, state: RunState):
        events = tuple(event(i) for i in range(1, 8))
        commit(store, state, events=events[:3])
        commit(store, state, events=events[3:])
        assert store.events(state.run_id) == events
        assert store.events(state.run_id, first_sequence=3, limit=2) == events[2:4]
        assert store.events(state.run_id, first_sequence=8) == ()
        assert store.events(state.run_id, first_sequence=2**64) == ()

    def test_what_was_written_of_an_event_is_not_written_again(
        self, store: StateStore, state: RunState
    ):
        commit(store, state, events=(event(1),))
        refused(store, state, events=(event(1, worker="other"),))

    def test_a_published_version_never_changes(self, store: StateStore, state: RunState):
        commit(store, state, adapters=(adapter(2), adapter(1)))
        refused(store, state, adapters=(adapter(1, "b" * 64),))
        assert store.adapters(state.run_id) == (adapter(1), adapter(2))
        assert store.adapter(state.run_id, 1) == adapter(1)
        assert store.adapter(state.run_id, 3) is None
        assert store.adapter(state.run_id, 2**64) is None

    def test_a_refused_part_takes_the_whole_transaction_with_it(
        self, store: StateStore, state: RunState
    ):
        commit(store, state, adapters=(adapter(1),))
        refused(
            store,
            state,
            events=(event(1),),
            updates=(update(1),),
            reports=(sample_round(1),),
            certificates=((1, sample_certificate(1)),),
            adapters=(adapter(2), adapter(1)),
        )

    def test_a_certificate_joins_its_report_whichever_comes_first(
        self, store: StateStore, state: RunState
    ):
        bare = {r: sample_round(r, certified=False) for r in (1, 2, 3)}
        proof = {r: sample_certificate(r) for r in (1, 2)}
        commit(store, state, reports=(bare[1],))
        commit(store, state, certificates=((1, proof[1]), (2, proof[2])))
        assert store.report(state.run_id, 1) == replace(bare[1], certificate=proof[1])
        assert store.report(state.run_id, 2) is None
        commit(store, state, reports=(bare[3], bare[2]))
        assert store.reports(state.run_id) == (
            replace(bare[1], certificate=proof[1]),
            replace(bare[2], certificate=proof[2]),
            bare[3],
        )
        assert [r.round for r in store.reports(state.run_id, after=1, limit=1)] == [2]
        assert [r.round for r in store.reports(state.run_id, after=1)] == [2, 3]
        assert store.reports(state.run_id, after=3, limit=5) == ()

    def test_rounds_without_a_certificate_are_those_that_have_aggregated(
        self, store: StateStore, state: RunState
    ):
        odd = replace(adapter(3), measurements={"m": {"sweeps": math.nan}})
        refined = replace(adapter(5), round=4, is_refinement=True)
        versions = (adapter(0), adapter(1), adapter(2), odd, adapter(4), refined)
        commit(store, state, adapters=versions)
        assert store.uncertified_rounds(state.run_id) == (1, 2, 3, 4)
        proofs = tuple((r, sample_certificate(r)) for r in (2, 4))
        commit(store, state, certificates=proofs)
        assert store.uncertified_rounds(state.run_id) == (1, 3)

    def test_a_certificate_measured_again_replaces_the_first(
        self, store: StateStore, state: RunState
    ):
        commit(store, state, reports=(sample_round(1),), certificates=((1, sample_certificate(1)),))
        again = replace(sample_certificate(1), seconds=9.0)
        commit(store, state, certificates=((1, again),))
        (found,) = store.reports(state.run_id)
        assert found.certificate == again

    def test_figures_that_are_no_numbers_come_back_as_they_are(
        self, store: StateStore, state: RunState
    ):
        proof = sample_certificate(1)
        odd = replace(proof, overall=replace(proof.overall, gap_closed=math.nan, rank=2**62))
        commit(store, state, reports=(sample_round(1),), certificates=((1, odd),))
        (found,) = store.reports(state.run_id)
        assert found.certificate is not None
        assert math.isnan(found.certificate.overall.gap_closed)
        assert found.certificate.overall.rank == 2**62


class BothStores(RuleBasedStateMachine):
    """Whatever is done to both, they say the same."""

    @initialize()
    def open(self) -> None:
        self.memory = InMemoryStateStore()
        self.sqlite = SqliteStateStore(Path(":memory:"))

    def teardown(self) -> None:
        self.sqlite.close()

    @rule(
        run=st.integers(0, 1),
        clock=st.floats(allow_nan=False),
        events=st.lists(st.integers(1, 6), max_size=3),
        updates=st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.integers(0, 3)),
            max_size=2,
        ),
        adapters=st.lists(st.integers(0, 3), max_size=2),
        reports=st.lists(st.integers(1, 3), max_size=2),
        certificates=st.lists(st.integers(1, 3), max_size=2),
    )
    def commit(self, run, clock, events, updates, adapters, reports, certificates) -> None:
        transaction = Transaction(
            state=RunState(run_id=f"id-{run}", spec=run_spec(f"run-{run}"), created_at=float(run)),
            clock=clock,
            events=tuple(event(i) for i in events),
            updates=tuple(
                update(number, round=round, worker=f"w-{worker}", key=f"k-{key}")
                for number, round, worker, key in updates
            ),
            adapters=tuple(adapter(v, memory=f"{v:063d}m") for v in adapters),
            reports=tuple(sample_round(r, certified=False) for r in reports),
            certificates=tuple((r, sample_certificate(r)) for r in certificates),
        )
        answers = []
        for store in (self.memory, self.sqlite):
            try:
                store.commit(transaction)
                answers.append(None)
            except FedLoraError as error:
                answers.append(error.reason)
        assert answers[0] == answers[1]

    @rule(run=st.integers(0, 1), rounds=st.lists(st.integers(0, 3), max_size=3))
    def drop(self, run: int, rounds: list[int]) -> None:
        for store in (self.memory, self.sqlite):
            store.drop_updates(f"id-{run}", rounds)

    @invariant()
    def say_the_same(self) -> None:
        assert contents(self.memory) == contents(self.sqlite)
        for key in range(4):
            found = [s.update_by_key("id-0", f"k-{key}") for s in (self.memory, self.sqlite)]
            assert found[0] == found[1]


TestBothStores = BothStores.TestCase
TestBothStores.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
