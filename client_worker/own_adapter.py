"""The adapter that is this worker's own, kept in a file for `fedlora export --worker`.

    <folder>/<name of the run>.safetensors

It holds every tensor of the model's adapter, in the precision of training, with what the run has
added to the base model: the model's own scores are those of this file. It is written

    after a round's training       before aggregation: the worker's last update, had it been sent
                                   whole and uncoded; with Ditto, the adapter trained beside it
    after a version was scored     where something is the worker's own, private parts, personal
                                   magnitudes or Ditto's adapter: the version with that in it

so what was written last is the worker's own adapter. The file never leaves the machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import structlog
from torch import Tensor

from fedlora.adapters.own_note import NOTE_KEY, OwnNote
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Task, TaskKind
from fedlora.tensors.safetensors_io import METADATA, encode

__all__ = ["OwnAdapter"]

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 1024**2


class OwnAdapter:
    """Keeps one adapter a run.

    Args:
        folder: of this worker alone; None keeps nothing.
        worker: its name.
    """

    def __init__(self, folder: Path | None, worker: str) -> None:
        self._folder = folder
        self._worker = worker

    @property
    def is_kept(self) -> bool:
        """Whether there is a place for it."""
        return self._folder is not None

    def keep(self, run: RunSpec, task: Task, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Puts an adapter in the place of the one before; a disk that refuses is logged.

        Args:
            run: the run, whose name is checked where it is made.
            task: what it was made for.
            version: the published one below it.
            tensors: all of it, on the CPU.
        """
        if self._folder is None:
            return
        note = OwnNote(
            run=run.name,
            worker=self._worker,
            round=task.round,
            adapter_version=version,
            is_trained=task.kind is TaskKind.TRAIN,
            spec=run.adapter,
        )
        payload = encode(tensors, {**METADATA, NOTE_KEY: json.dumps(asdict(note))})
        temporary = self._folder / "writing.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                for _, data in payload.chunks(0, _CHUNK_BYTES):
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._folder / f"{run.name}.safetensors")
        except OSError as error:
            log.warning("own_adapter_not_kept", error=str(error))
