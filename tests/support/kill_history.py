"""A federation that lives through the ends of its server, and the history that it leaves.

The server is the real process. What happens to each of its lives is said in a word:

    renamed=kill@17             dies by SIGKILL at that passage of that failpoint
    blob_unsynced=ENOSPC@9x5    five of its operations fail there; it lives
    kill after 17               SIGKILL at the 17th acknowledgement of this life, wherever it is
    term after 17               SIGTERM then

and it is started again until the run is over. Its workers are scripted: what one sends is a
function of its name, the round and the bytes that it was given, so a history with kills must end in
the same bytes as one without. What a worker was told is written down, and `judge` holds the state
directory against it.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import torch
from safetensors.torch import load, save
from support.fault_log import record
from support.federation import (
    ScriptedWorker,
    Served,
    connected,
    random_adapter,
    reason_of,
    upload,
)
from support.processes import ServerProcess

from fedlora.adapters.extras import extras_of, without_extras
from fedlora.adapters.names import extra_key
from fedlora.digests import new_digest
from fedlora.proto.v1 import admin_pb2, federation_pb2
from fedlora.runs.spec import RunSpec

LEAST_ACKNOWLEDGED = 20
"""a fault with fewer acknowledged updates around it shows nothing"""

_AWAY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""what a call ends with whose server was killed, is leaving, or has a disk that refuses"""


@dataclass(frozen=True)
class Acknowledged:
    """An update that the server has said counts."""

    worker: str
    round: int
    key: str
    digest: str
    update_id: str


@dataclass
class History:
    """What the workers know of a run."""

    folder: Path
    words: tuple[str, ...] = ()
    """what was to happen to the lives of the server"""
    acknowledged: list[Acknowledged] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)
    """digests of everything that anybody began to send"""
    kills: list[int] = field(default_factory=list)
    """how many updates had been acknowledged at each end of the server but the last"""
    drains: list[float] = field(default_factory=list)
    """seconds from each SIGTERM to the end of the process"""
    adapters: list[str] = field(default_factory=list)
    """digests of the published versions, in order"""

    @property
    def num_faults(self) -> int:
        """Faults injected: ends of the process, and operations that were made to fail."""
        refused = (re.search(r"=E\w+@\d+x(\d+)$", word) for word in self.words)
        return len(self.kills) + sum(int(match[1]) for match in refused if match)

    def around(self, kill: int) -> int:
        """Updates acknowledged between the kill before one and the kill after it."""
        edges = [0, *self.kills, len(self.acknowledged)]
        return edges[kill + 2] - edges[kill]


@dataclass
class _Life:
    """One process of the server, from its first answer to its end."""

    served: Served
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    acknowledged: int = 0
    signal: tuple[signal.Signals, int] | None = None
    """what it is sent, and at which acknowledgement"""
    signalled: float = 0.0


class _Federation:
    """The server's processes, and the workers that speak to them."""

    def __init__(self, folder: Path, spec: RunSpec, kills: Sequence[str]) -> None:
        self.history = History(folder, tuple(kills))
        self.server = ServerProcess(folder, spec)
        self._spec = spec
        self._kills = list(kills)
        self._life: asyncio.Future[_Life] = asyncio.get_running_loop().create_future()

    async def supervise(self, workers: asyncio.Future[object]) -> None:
        """Keeps a server up until the workers are done, then ends it in good order."""
        async with AsyncExitStack() as channels:
            while True:
                word = self._kills.pop(0) if self._kills else ""
                planned = _signal_of(word)
                await asyncio.to_thread(self.server.start, "" if planned else word)
                process = self.server.process
                assert process is not None
                # Open to the end: closing one would cancel calls that are yet to learn of a kill.
                served = await channels.enter_async_context(connected(self.server.address))
                life = _Life(served, signal=planned)
                self._life.set_result(life)
                died = asyncio.ensure_future(asyncio.to_thread(process.wait))
                await asyncio.wait({died, workers}, return_when=asyncio.FIRST_COMPLETED)
                if not died.done():
                    await workers
                    await self._end(served)
                    await died
                    return
                code = 0 if planned and planned[0] is signal.SIGTERM else -signal.SIGKILL
                assert died.result() == code, self.server.log[-3000:]
                if code == 0:
                    self.history.drains.append(time.monotonic() - life.signalled)
                self.history.kills.append(len(self.history.acknowledged))
                self._life = asyncio.get_running_loop().create_future()
                life.ended.set()

    async def _end(self, served: Served) -> None:
        self.history.adapters = [r.adapter_digest for r in await served.rounds(self._spec.name)]
        assert await asyncio.to_thread(self.server.terminate) == 0

    async def work(self, name: str) -> None:
        """One worker, from registration to the end of the run."""
        worker, update = ScriptedWorker(None, name), None
        while True:
            life = await asyncio.shield(self._life)
            worker.stub = life.served.federation
            try:
                if not worker.token:
                    await worker.register()
                    await worker.confirm()
                if update is None:
                    task = await worker.task(max_wait_seconds=20)
                    if task.kind == federation_pb2.TASK_KIND_STOP:
                        return
                    if task.kind == federation_pb2.TASK_KIND_WAIT:
                        continue
                    update = await _Update.made(worker, task)
                # Like the real worker: until it is acknowledged, or refused as too late.
                await self._submit(worker, update)
                life.acknowledged += 1
                if life.signal is not None and life.acknowledged == life.signal[1]:
                    assert self.server.process is not None
                    life.signalled = time.monotonic()
                    self.server.process.send_signal(life.signal[0])
            except grpc.aio.AioRpcError as error:
                if error.code() in _AWAY:
                    await _until_it_answers(life)
                    continue
                if reason_of(error) not in ("WRONG_ROUND", "WRONG_TASK"):
                    raise
            update = None

    async def _submit(self, worker: ScriptedWorker, update: _Update) -> None:
        self.history.sent.add(update.digest)
        header = worker.header(update.task, update.tensors, update.data)
        status = await worker.upload_status(header.idempotency_key)
        answer = status.acknowledgement
        if status.state != federation_pb2.UPLOAD_STATE_COMMITTED:
            start = status.durable_bytes
            header = worker.header(update.task, update.tensors, update.data, start_offset=start)
            answer = await worker.push_messages(upload(header, update.data, start_offset=start))
        assert answer.digest.hex() == update.digest
        self.history.acknowledged.append(
            Acknowledged(
                worker=worker.name,
                round=update.task.round,
                key=header.idempotency_key,
                digest=update.digest,
                update_id=answer.update_id,
            )
        )


@dataclass(frozen=True)
class _Update:
    """What a worker has made and not had acknowledged."""

    task: federation_pb2.Task
    tensors: dict[str, torch.Tensor]
    data: bytes

    @property
    def digest(self) -> str:
        return new_digest(self.data).hexdigest()

    @staticmethod
    async def made(worker: ScriptedWorker, task: federation_pb2.Task) -> _Update:
        """Noise of this worker and round, on top of the very bytes that it was given."""
        tensors = random_adapter(worker.rank, seed=0, scale=0.1)
        if task.kind == federation_pb2.TASK_KIND_TRAIN:
            header, data, _ = await worker.pull(task.adapter_version)
            assert new_digest(data).digest() == header.digest
            digest = new_digest(f"{worker.name}/{task.round}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            given = load(data)
            tensors = {
                name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator)
                for name, tensor in sorted(without_extras(given).items())
            }
            # What a plug-in is given is in all that is sent: a wrong one would show in every bit.
            for extra in task.plan.given_extras:
                for name, tensor in extras_of(given, extra).items():
                    tensors[name] -= 0.1 * tensor
            sent = {n: {k: 0.1 * t for k, t in tensors.items()} for n in task.plan.sent_extras}
            tensors |= {extra_key(n, k): t for n, held in sent.items() for k, t in held.items()}
        return _Update(task, tensors, save(tensors))


async def live_through(
    folder: Path, spec: RunSpec, names: Sequence[str], kills: Sequence[str] = ()
) -> History:
    """Runs a federation to its end, with what `kills` says of one life of the server each."""
    folder.mkdir(parents=True)
    federation = _Federation(folder, spec, kills)
    workers = asyncio.gather(*(federation.work(name) for name in names))
    try:
        await federation.supervise(workers)
    finally:
        workers.cancel()
        if federation.server.process is not None and federation.server.process.poll() is None:
            federation.server.kill()
    return federation.history


def _is_stored(update: Acknowledged, row: dict[str, object] | None) -> bool:
    if row is None:
        return False
    # It was made for a round, and counts in that or, if it was late, in a later one.
    made_for = int(str(row["round"])) - int(str(row["staleness"]))
    stored = (row["worker"], made_for, row["idempotency_key"], row["digest"])
    return stored == (update.worker, update.round, update.key, update.digest)


def _signal_of(word: str) -> tuple[signal.Signals, int] | None:
    """What "kill after 17" or "term after 17" says; None for a failpoint's rule."""
    name, _, count = word.partition(" after ")
    kinds = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
    return (kinds[name], int(count)) if count else None


async def _until_it_answers(life: _Life) -> None:
    """Until the process answers again, or has ended."""
    ended = asyncio.ensure_future(life.ended.wait())
    answer = asyncio.ensure_future(
        life.served.admin.ListRuns(admin_pb2.ListRunsRequest(), timeout=60, wait_for_ready=True)
    )
    await asyncio.wait({ended, answer}, return_when=asyncio.FIRST_COMPLETED)
    for waiting in (ended, answer):
        waiting.cancel()
    await asyncio.gather(ended, answer, return_exceptions=True)


# --- the verdict -----------------------------------------------------------------------------


def judge(history: History, spec: RunSpec, names: Sequence[str], *, cohorts: bool = True) -> None:
    """Holds the state directory of an ended run against what its workers were told.

    A run with fewer than `LEAST_ACKNOWLEDGED` updates around any end of its server fails.

    Args:
        history: as lived through.
        spec: of the run.
        names: of its workers.
        cohorts: every round has an update of every worker.
    """
    state = history.folder / "state"
    database = sqlite3.connect(state / "fedlora.sqlite")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        rows = [json.loads(r) for (r,) in database.execute("SELECT record FROM updates")]
        kept = {d for (d,) in database.execute("SELECT digest FROM update_files")}
        certified = {r for (r,) in database.execute("SELECT round FROM certificates")}
        events = [
            json.loads(e) for (e,) in database.execute("SELECT event FROM events ORDER BY sequence")
        ]
        adapters = [json.loads(a) for (a,) in database.execute("SELECT record FROM adapters")]
    finally:
        database.close()
    counted = {row["update_id"]: row for row in rows}
    lost = [u for u in history.acknowledged if not _is_stored(u, counted.get(u.update_id))]
    places = Counter((row["round"], row["worker"]) for row in rows)
    twice = [place for place, times in places.items() if times > 1]
    record(
        faults=history.num_faults,
        acknowledged=len(history.acknowledged),
        lost=len(lost),
        twice=len(twice),
    )
    for kill in range(len(history.kills)):
        assert history.around(kill) >= LEAST_ACKNOWLEDGED, f"void: too little around end {kill}"
    assert len(history.acknowledged) >= LEAST_ACKNOWLEDGED, "void: too little happened"
    assert not lost, "acknowledged and not stored as it was sent"
    assert not twice
    # Everybody is asked until it is answered: in the end all that counts was acknowledged. Without
    # cohorts the run may end while somebody still asks.
    told = {u.update_id for u in history.acknowledged}
    assert set(counted) == told or (not cohorts and told < set(counted))
    assert {row["digest"] for row in rows} <= history.sent
    rounds = range(1, spec.rounds.num_rounds + 1)
    per_round = Counter((row["round"], row["worker"]) for row in rows if row["round"])
    assert not cohorts or per_round == Counter((r, n) for r in rounds for n in names)
    assert [e["sequence"] for e in events] == list(range(1, len(events) + 1))
    kinds = Counter(e["type"] for e in events)
    assert kinds["update_committed"] == len(rows)
    for once in ("round_started", "round_closed", "round_completed"):
        assert [e["round"] for e in events if e["type"] == once] == list(rounds)
    assert kinds["server_restarted"] == len(history.kills)
    assert [a["version"] for a in adapters] == [0, *rounds]
    newest = {row["digest"] for row in rows if row["round"] == rounds[-1]}
    uncertified = {row["digest"] for row in rows if row["round"] in {*rounds} - certified}
    assert newest | uncertified <= kept
    kept |= {a["digest"] for a in adapters}
    kept |= {a["state_digest"] for a in adapters[-1:] if a["state_digest"]}
    for digest in kept:
        blob = state / "blobs" / digest[:2] / digest
        assert new_digest(blob.read_bytes()).hexdigest() == digest
    for left in ("uploads", "quarantine"):
        assert list((state / left).iterdir()) == []
