"""One key, one update: schedules of sending, losing the answer, racing, restarting."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import grpc
import hypothesis
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from support.fault_log import record
from support.federation import ScriptedWorker, Served, random_adapter, reason_of, serving, upload
from support.runs import run_spec
from support.seeds import seeds_for

from aggregator_service.rounds.ports import StateStore
from aggregator_service.rounds.state import UpdateRecord
from fedlora.proto.v1 import federation_pb2 as pb

NAMES = ("w-0", "w-1", "w-2")
SPEC = run_spec(method="flora_na", num_rounds=1, num_workers=3, evaluate=False)

Action = tuple[str, str]

ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["send", "lose", "resend", "resume", "other", "race", "restart"]),
        st.sampled_from(NAMES),
    ),
    max_size=7,
)


class Schedule:
    """One run in the middle of its round, and what its workers have been told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.told: dict[str, str] = {}
        """update id by worker: what the server has said, or could be found to have stored"""
        self.num_told = self.num_faults = 0
        self._workers: dict[str, ScriptedWorker] = {}
        self._tasks: dict[str, pb.Task] = {}

    async def play(self, actions: Sequence[Action]) -> str:
        """Plays the actions, then lets everybody finish; the digest of the version."""
        left = [*actions]
        while True:
            async with serving(self.folder, SPEC) as served:
                await self._meet(served)
                while left:
                    action, name = left.pop(0)
                    if action == "restart":
                        self.num_faults += 1
                        break
                    await getattr(self, f"_{action}")(name)
                else:
                    for name in NAMES:
                        await self._send(name)
                    actor = served.aggregator.coordinator.run("test")
                    while not actor.is_settled:
                        await actor.wait_for_change(None)
                    stored = await served.aggregator.coordinator.store.call(
                        functools.partial(updates_of, actor.state.run_id)
                    )
                    lost = {u.worker: u.update_id for u in stored} != self.told
                    record(
                        faults=self.num_faults,
                        acknowledged=self.num_told,
                        lost=int(lost),
                        twice=len(stored) - len(NAMES),
                    )
                    assert not lost
                    assert len(stored) == len(NAMES)
                    assert actor.state.adapter is not None
                    return actor.state.adapter.digest

    async def _meet(self, served: Served) -> None:
        if not self._workers:
            self._workers = {n: await served.worker(n) for n in NAMES}
            first = self._workers[NAMES[0]]
            await first.push(await first.task(), random_adapter(4, seed=0), num_examples=0)
            self._tasks = {n: await w.task() for n, w in self._workers.items()}
        for worker in self._workers.values():
            worker.stub = served.federation

    def _messages(self, name: str, *, seed: int = 1, start: int = 0) -> list[pb.PushUpdateRequest]:
        tensors = random_adapter(4, seed=10 * seed + NAMES.index(name))
        data = save(tensors)
        header = self._workers[name].header(
            self._tasks[name], tensors, data, idempotency_key=f"key-{name}", start_offset=start
        )
        return upload(header, data, start_offset=start)

    def _hear(self, name: str, answer: pb.PushUpdateResponse) -> None:
        self.num_told += 1
        assert self.told.setdefault(name, answer.update_id) == answer.update_id

    async def _send(self, name: str) -> None:
        worker = self._workers[name]
        while True:
            try:
                self._hear(name, await worker.push_messages(self._messages(name)))
            except grpc.aio.AioRpcError as error:
                # The stream that was lost is still being ended.
                if reason_of(error) != "UNAVAILABLE":
                    raise
                await worker.upload_status(f"key-{name}")
            else:
                return

    async def _lose(self, name: str) -> None:
        """Sends all of it and does not wait for the answer."""
        self.num_faults += 1
        call = self._workers[name].stub.PushUpdate(timeout=30)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            for message in self._messages(name):
                await call.write(message)
        call.cancel()
        status = await self._workers[name].upload_status(f"key-{name}")
        if status.state == pb.UPLOAD_STATE_COMMITTED:
            self._hear(name, status.acknowledgement)

    async def _resend(self, name: str) -> None:
        await self._send(name)
        again = await self._workers[name].push_messages(self._messages(name))
        assert again.replayed
        self._hear(name, again)

    async def _resume(self, name: str) -> None:
        """Goes on from the middle with what has meanwhile been counted whole."""
        await self._send(name)
        again = await self._workers[name].push_messages(self._messages(name, start=700))
        assert again.replayed
        self._hear(name, again)

    async def _other(self, name: str) -> None:
        """Other bytes under a key that counts are refused, and replace nothing."""
        await self._send(name)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self._workers[name].push_messages(self._messages(name, seed=2))
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS

    async def _race(self, name: str) -> None:
        """Eight streams of one key at once: whoever is answered is answered the same."""
        self.num_faults += 1
        push = self._workers[name].push_messages
        answers = await asyncio.gather(
            *(push(self._messages(name)) for _ in range(8)), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, grpc.aio.AioRpcError)
                assert reason_of(answer) == "UNAVAILABLE", "another stream of the key was open"
            else:
                self._hear(name, answer)


def updates_of(run_id: str, store: StateStore) -> tuple[UpdateRecord, ...]:
    return store.updates(run_id, 1)


def played(actions: Sequence[Action]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(Schedule(Path(folder)).play(actions))


@pytest.fixture(scope="module")
def undisturbed() -> str:
    return played([])


@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(actions=ACTIONS)
def test_whatever_is_lost_and_sent_again_counts_once(undisturbed: str, actions: list[Action]):
    assert played(actions) == undisturbed


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", seeds_for("test_five_hundred_schedules", 1, fresh=True))
def test_five_hundred_schedules(undisturbed: str, seed: int):
    # No database: the seed alone says which schedules these are.
    @hypothesis.seed(seed)
    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(actions=ACTIONS)
    def each_counts_once(actions: list[Action]) -> None:
        assert played(actions) == undisturbed

    each_counts_once()
