"""Many workers fetch one version: it is cut to a rank once, and each chunk is encoded once."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from pathlib import Path

import pytest
from support.federation import random_adapter, serving
from support.runs import run_spec
from support.senders import Sender, Update

from aggregator_service import engine
from aggregator_service.transport import encoded_files, server
from aggregator_service.transport.encoded_files import EncodedFiles
from fedlora.adapters.spec import AdaptedModule, AdapterLayout

NUM_WORKERS = 20
PULLS = 5
"""of each worker at a time"""
CHUNK = 16 * 1024
RANK, WIDTH = 16, 4096
LAYOUT = AdapterLayout(
    modules=(AdaptedModule(path="wide", in_features=WIDTH, out_features=WIDTH),),
    saved_tensors=(),
    base_fingerprint="sha256:base",
)
"""33 chunks at RANK, with the header of the file"""


async def test_a_hundred_pulls_at_a_time_and_a_hundred_later_take_one_encoding_of_each_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "EncodedFiles", functools.partial(EncodedFiles, chunk_bytes=CHUNK))
    encodings = counted(monkeypatch, encoded_files, "_read")
    copies = counted(monkeypatch, engine, "worker_copy")
    async with serving(
        tmp_path, run_spec(method="flexlora", num_workers=NUM_WORKERS, rank=RANK)
    ) as served:
        # Half of them train half of the rank: their copy is another file.
        workers = [
            await served.worker(f"w-{i:02}", layout=LAYOUT, max_rank=RANK // 2 if i % 2 else 0)
            for i in range(NUM_WORKERS)
        ]
        update = Update.of(random_adapter(RANK, seed=0, layout=LAYOUT))
        await Sender(workers[0], await workers[0].task(), update).send()
        for _ in range(2):
            pulled = await asyncio.gather(*(w.pull(0) for w in workers for _ in range(PULLS)))
            assert {header.rank for header, _, _ in pulled} == {RANK, RANK // 2}
            assert all(len(data) == header.total_bytes for header, data, _ in pulled)
    sizes = {header.digest.hex(): header.total_bytes for header, _, _ in pulled}
    assert len(sizes) == 2
    assert copies.total() == len(sizes)
    assert max(encodings.values()) == 1
    assert len(encodings) == sum(-(-size // CHUNK) for size in sizes.values()) == 33 + 17


def counted(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> Counter[object]:
    """How often a function of a module is called, by its arguments."""
    function, calls = getattr(module, name), Counter[object]()

    def counting(*arguments: object, **named: object) -> object:
        calls[repr((arguments, named))] += 1
        return function(*arguments, **named)

    monkeypatch.setattr(module, name, counting)
    return calls
