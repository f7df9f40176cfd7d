"""Real workers whose acknowledgements a test learns of, and what a server has stored of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from support.worker_harness import Worker, worker

from aggregator_service.rounds.ports import StateStore
from aggregator_service.store.blobs import BlobStore
from client_worker.patience import Patience
from fedlora.runs.tasks import Acknowledgement, UpdateHeader
from fedlora.tensors.safetensors_io import Payload

__all__ = ["Submission", "noted_worker", "stored_submissions"]

Submission = tuple[int, str, str]
"""round, worker, digest"""


@contextmanager
def noted_worker(
    address: str,
    folder: Path,
    name: str,
    acknowledged: list[tuple[Submission, Acknowledgement]],
    *,
    on_step: Callable[[int], None],
) -> Iterator[Worker]:
    """A worker with endless patience, and with pauses as in earnest.

    Args:
        address: of the server.
        folder: of this worker alone.
        name: its name.
        acknowledged: what it is told counts is appended here.
        on_step: called in each step of its training.
    """
    patience = Patience(limit_seconds=0)
    with worker(address, folder, name=name, on_step=on_step, patience=patience) as made:
        push = made.client.push_update

        def noting(
            header: UpdateHeader, payload: Payload, *, max_chunk_bytes: int
        ) -> Acknowledgement:
            acknowledgement = push(header, payload, max_chunk_bytes=max_chunk_bytes)
            submission = (header.round, name, acknowledgement.digest.hex())
            acknowledged.append((submission, acknowledgement))
            return acknowledgement

        made.client.push_update = noting
        yield made


def stored_submissions(store: StateStore, blobs: BlobStore, num_rounds: int) -> list[Submission]:
    """What counts of a server's only run; every file that it keeps has been read."""
    ((state, _),) = store.load_runs()
    updates = [u for r in range(num_rounds + 1) for u in store.updates(state.run_id, r)]
    kept = store.kept_rounds(state.run_id)
    assert num_rounds in kept
    for update in updates:
        if update.round in kept:
            blobs.verify(update.digest)
    return sorted((u.round, u.worker, u.digest) for u in updates)
