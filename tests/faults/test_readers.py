"""Many who fetch the newest adapter while new ones are published: each gets one of them, whole."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.federation import Served, connected, random_adapter, serving
from support.link import Conditions, Way
from support.runs import run_spec
from support.tcp_proxy import FaultProxy
from support.waiting import until

from aggregator_service.run_actor import RunActor
from aggregator_service.transport import server
from aggregator_service.transport.encoded_files import EncodedFiles
from fedlora.digests import new_digest
from fedlora.proto.v1 import admin_pb2 as pb

NUM_READERS = 64
NUM_SLOW = 16
NUM_ROUNDS = 3
RANK = 128
"""30 KiB"""


@dataclass
class Reader:
    """Fetches the newest adapter again and again."""

    served: Served
    actor: RunActor
    begun: dict[int, int] = field(default_factory=dict)
    """of each version: how often its header has come"""
    fetched: list[tuple[int, str, str, int, int]] = field(default_factory=list)
    """version, digest in the header, digest of the bytes, newest before and after"""

    async def read(self) -> None:
        """Until the last version has come."""
        version = -1
        while version < NUM_ROUNDS:
            version = await self._fetch()

    async def _fetch(self) -> int:
        before = self.actor.state.version or 0
        digest = new_digest()
        async for message in self.served.admin.ExportAdapter(
            pb.ExportAdapterRequest(run="test"), timeout=60
        ):
            if message.HasField("header"):
                header, at_header = message.header, self.actor.state.version or 0
                self.begun[header.adapter_version] = self.begun.get(header.adapter_version, 0) + 1
            digest.update(message.chunk.data)
        self.fetched.append(
            (header.adapter_version, header.digest.hex(), digest.hexdigest(), before, at_header)
        )
        return header.adapter_version


async def test_readers_get_the_newest_adapter_or_the_one_before_and_always_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Many chunks, so that one version could follow on another.
    small = functools.partial(EncodedFiles, chunk_bytes=4096)
    monkeypatch.setattr(server, "EncodedFiles", small)
    spec = run_spec(num_rounds=NUM_ROUNDS, num_workers=1, rank=RANK, evaluate=False)
    async with (
        serving(tmp_path, spec) as served,
        FaultProxy(served.address) as proxy,
        connected(proxy.address) as behind,
    ):
        proxy.link.set(Conditions(bytes_per_second=2_000_000.0), Way.DOWN)
        actor = served.aggregator.coordinator.run(spec.name)
        worker = await served.worker("w")
        await worker.push(await worker.task(), random_adapter(RANK, seed=0))
        readers = [Reader(behind if i < NUM_SLOW else served, actor) for i in range(NUM_READERS)]
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(reader.read())
            for version in range(1, NUM_ROUNDS + 1):
                # While each of them is reading the version before.
                await until(lambda v=version: all(r.begun.get(v - 1) for r in readers))
                await worker.push(await worker.task(), random_adapter(RANK, seed=version))
                await until(lambda v=version: (actor.state.version or 0) >= v)
        published = {
            version: (await served.aggregator.coordinator.adapter(actor, version)).digest
            for version in range(NUM_ROUNDS + 1)
        }
    assert len(set(published.values())) == NUM_ROUNDS + 1
    for reader in readers:
        for version, promised, came, before, after in reader.fetched:
            assert before <= version <= after
            assert promised == came == published[version]
        versions = [version for version, *_ in reader.fetched]
        assert versions == sorted(versions)
        assert set(versions) == set(published)
