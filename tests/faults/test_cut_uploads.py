"""A large upload whose connection is cut again and again: what is sent twice, and what never is.

Never twice: a byte that the server has written down. At most a chunk for each cut: what the server
was given by gRPC and had not written. Lost with its connection, and sent again over the next: what
was on its way, which is at most what gRPC lets a stream have in flight and the chunk that was not
whole.
"""

from __future__ import annotations

import asyncio
import random
import time
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import torch
from support.fault_log import record
from support.federation import serving
from support.link import Way
from support.runs import run_spec
from support.seeds import seeds_for
from support.tcp_proxy import FaultProxy

from aggregator_service.pace import Pace
from aggregator_service.store.upload_writer import UploadWriter
from client_worker.membership import Membership
from client_worker.patience import Patience
from client_worker.transport.client import FederationClient
from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.rpc.channel import MAX_CHUNK_BYTES, SERVER_OPTIONS
from fedlora.runs.tasks import Acknowledgement, Capabilities, UpdateHeader
from fedlora.tensors.manifest import DataType
from fedlora.tensors.safetensors_io import Payload, encode

log = structlog.get_logger(__name__)

RANK = 4
SIDE = 2 * 1024**2
LAYOUT = AdapterLayout(
    modules=(AdaptedModule(path="encoder.0.query", in_features=SIDE, out_features=SIDE),),
    saved_tensors=(),
    base_fingerprint="sha256:base",
)
"""64 MiB of float32"""

WINDOW_BYTES = dict(SERVER_OPTIONS)["grpc.http2.lookahead_bytes"]


def large_payload() -> Payload:
    generator = torch.Generator().manual_seed(1)
    manifest = LAYOUT.manifest(RANK, DataType.F32)
    return encode({t.name: torch.randn(t.shape, generator=generator) for t in manifest.tensors})


def submit(address: str, payload: Payload) -> Acknowledgement:
    """As a worker does: register, confirm, initialize, however often the connection breaks."""
    patience = Patience(limit_seconds=0, sleep=lambda seconds: time.sleep(min(seconds, 0.1)))
    with FederationClient(address) as client:
        membership = Membership(client, name="w", run_name="", capabilities=Capabilities())
        registration = patience.insist("registering", membership.register)
        assignment = registration.run, registration.rank, registration.data_slot
        patience.insist("confirming", lambda: membership.confirm(assignment, LAYOUT))
        token = registration.session_token
        task = patience.insist("task", lambda: client.await_task(token, max_wait_seconds=10.0))
        header = UpdateHeader(
            session_token=token,
            run_id=registration.run_id,
            task_id=task.task_id,
            round=task.round,
            base_version=0,
            idempotency_key="the only one",
            total_bytes=payload.total_bytes,
            manifest=payload.manifest,
            num_examples=0,
        )
        return patience.insist(
            "submitting",
            lambda: client.push_update(
                header, payload, max_chunk_bytes=registration.limits.max_chunk_bytes
            ),
        )


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Offset and length of all that servers of this test write down of uploads."""
    noted: list[tuple[int, int]] = []
    write = UploadWriter.write

    def noting(writer: UploadWriter, offset: int, data: bytes) -> None:
        write(writer, offset, data)
        noted.append((offset, len(data)))

    monkeypatch.setattr(UploadWriter, "write", noting)
    return noted


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Payload bytes of each message that gRPC gives to servers of this test."""
    noted: list[int] = []
    moved = Pace.moved

    def noting(pace: Pace, num_bytes: int) -> None:
        moved(pace, num_bytes)
        noted.append(num_bytes)

    monkeypatch.setattr(Pace, "moved", noting)
    return noted


async def cut_and_resume(
    folder: Path,
    written: list[tuple[int, int]],
    received: list[int],
    num_cuts: int,
    seed: int,
) -> int:
    """Returns how often it was cut."""
    payload, rng = large_payload(), random.Random(seed)
    places = sorted(rng.randrange(1, payload.total_bytes) for _ in range(num_cuts))
    spec = run_spec(num_rounds=1, num_workers=1, rank=RANK)
    async with serving(folder, spec) as served, FaultProxy(served.address) as proxy:
        proxy.cut_after(*(b - a for a, b in pairwise([0, *places]) if b > a))
        acknowledgement = await asyncio.to_thread(submit, proxy.address, payload)
        served.aggregator.coordinator.blobs.verify(payload.digest.hex())
        sent_again = proxy.forwarded(Way.UP) - payload.total_bytes
        num_cut = proxy.num_cut
    assert acknowledgement.digest == payload.digest
    assert num_cut > 0.9 * num_cuts
    end = 0
    for offset, length in written:
        assert offset == end
        end += length
    assert end == payload.total_bytes
    received_again = sum(received) - payload.total_bytes
    log.info(
        "sent_again",
        cuts=num_cut,
        bytes_for_each=sent_again // num_cut,
        given_to_the_server=received_again // num_cut,
    )
    assert received_again <= num_cut * MAX_CHUNK_BYTES
    assert sent_again <= num_cut * (MAX_CHUNK_BYTES + WINDOW_BYTES)
    return num_cut


@pytest.mark.parametrize("seed", seeds_for("test_an_upload_goes_on_behind_what_was_written", 1))
async def test_an_upload_goes_on_behind_what_was_written(
    tmp_path: Path, written: list[tuple[int, int]], received: list[int], seed: int
):
    await cut_and_resume(tmp_path, written, received, 10, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds_for("test_an_upload_that_is_cut_50_times", 3, fresh=True))
async def test_an_upload_that_is_cut_50_times(
    tmp_path: Path, written: list[tuple[int, int]], received: list[int], seed: int
):
    num_cut = await cut_and_resume(tmp_path, written, received, 50, seed)
    # What it has asserted by now: the bytes that were acknowledged are stored, each once.
    record(faults=num_cut, acknowledged=1, lost=0, twice=0)
