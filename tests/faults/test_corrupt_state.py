"""Bits that change on the server's disk: found before they count, and said so."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save
from support.federation import random_adapter, serving
from support.memory_store import InMemoryStateStore
from support.processes import ServerProcess
from support.runs import LAYOUT, run_spec

from aggregator_service.engine import AggregationEngine
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from aggregator_service.store.blobs import BlobStore, blob_path
from aggregator_service.store.sqlite import DATABASE_NAME
from aggregator_service.store.threaded import ThreadedStore
from fedlora.adapters.spec import AdaptedModule
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.runs.phase import RunPhase

WIDE = replace(
    LAYOUT,
    modules=(AdaptedModule(path="encoder.0.query", in_features=80, out_features=64),),
)
"""wide enough for a method to compute ahead, from files that are verified only at the close"""


def stored_round(blobs: BlobStore) -> RunState:
    """A round whose two updates and first version are blobs."""
    digests = []
    for seed in range(3):
        path = blobs.new_temporary()
        path.write_bytes(save(random_adapter(4, seed=seed, layout=WIDE)))
        digests.append(blobs.adopt(path))
    updates = {
        name: UpdateRecord(
            update_id=name,
            round=1,
            worker=name,
            idempotency_key=name,
            digest=digest,
            total_bytes=1,
            base_version=0,
            rank=4,
            num_examples=10,
        )
        for name, digest in zip(("w-0", "w-1"), digests, strict=False)
    }
    return RunState(
        run_id="r",
        spec=run_spec(),
        created_at=0.0,
        phase=RunPhase.TRAINING,
        layout=WIDE,
        round=1,
        version=0,
        adapter=AdapterRecord(version=0, round=0, digest=digests[2], total_bytes=1, rank=4),
        cohort=("w-0", "w-1"),
        updates=updates,
    )


def flip(path: Path, bit: int) -> None:
    """Changes one bit in place, as a disk does: whoever has mapped the file sees it too."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0] ^ 1 << bit % 8
        file.seek(bit // 8)
        file.write(bytes([byte]))


async def test_of_200_bits_none_is_ever_aggregated(tmp_path: Path):
    blobs = BlobStore(tmp_path)
    state = stored_round(blobs)
    assert state.adapter is not None
    whole = {
        digest: blobs.path(digest).read_bytes()
        for digest in (state.adapter.digest, *(u.digest for u in state.updates.values()))
    }
    engine = AggregationEngine(blobs, device="cpu", threads=1)
    store = ThreadedStore(InMemoryStateStore)
    await store.call(
        lambda s: s.commit(Transaction(state=state, clock=0.0, adapters=(state.adapter,)))
    )
    sound = await engine.aggregate(state, store)
    for seed in range(200):
        chance = random.Random(seed)
        digest = chance.choice(sorted(whole))
        flip(blobs.path(digest), chance.randrange(8 * len(whole[digest])))
        with pytest.raises(FedLoraError, match=digest) as caught:
            await engine.aggregate(state, store)
        assert caught.value.reason is Reason.STATE_CORRUPT, f"seed {seed}"
        assert not blobs.path(digest).exists()
        assert len(list((tmp_path / "quarantine").iterdir())) == seed + 1
        blobs.path(digest).write_bytes(whole[digest])
    again = await engine.aggregate(state, store)
    assert (again.digest, again.weights) == (sound.digest, sound.weights)
    engine.close()
    store.close()


@pytest.mark.parametrize("method", ["fedit", "flora_na"])
async def test_a_run_with_a_damaged_update_ends_without_it_being_used(tmp_path: Path, method: str):
    async with serving(tmp_path, run_spec(method=method, num_rounds=1)) as served:
        workers = [await served.worker(f"w-{i}", layout=WIDE) for i in range(2)]
        task = await workers[0].task()
        await workers[0].push(task, random_adapter(4, seed=0, layout=WIDE), num_examples=0)
        answer = await workers[0].push(
            await workers[0].task(), random_adapter(4, seed=1, layout=WIDE)
        )
        path = blob_path(tmp_path / "state" / "blobs", answer.digest.hex())
        flip(path, 8 * path.stat().st_size - 1)
        await workers[1].push(await workers[1].task(), random_adapter(4, seed=2, layout=WIDE))
        actor = served.aggregator.coordinator.run("test")
        while not actor.state.phase.is_final:
            await actor.wait_for_change(None)
        assert actor.state.phase is RunPhase.FAILED
        assert answer.digest.hex() in actor.state.reason
        assert "from a backup" in actor.state.reason
        assert actor.state.version == 0


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_server_does_not_start_on_a_damaged_database_and_says_what_to_do(
    tmp_path: Path, damage: str
):
    with ServerProcess(tmp_path, run_spec()) as server:
        assert server.terminate() == 0
    path = tmp_path / "state" / DATABASE_NAME
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:4096] + bytes(random.Random(1).randbytes(len(data) - 4096)))
    with pytest.raises(AssertionError, match="is damaged") as caught:
        server.start()
    assert "Restore the state directory from a backup" in str(caught.value)
    assert server.process is not None
    assert server.process.wait(30) == ExitCode.USAGE
