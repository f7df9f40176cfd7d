"""The parts of an adapter that a worker trains and never sends, from round to round.

    <folder>/<digest of the run>/<number>.<digest>.private

A file is a line of JSON, for which run, task and round it was made, and a safetensors payload; its
name holds the digest of all of it. Two are kept: what the last task made, and what that task began
from. A task that is given again, because a restart came before its acknowledgement, must begin
where it began the first time; from its own outcome it would train twice.

A file is durable before the update of its task is sent: a server that counts a round's A may rely
on the worker still having the B that goes with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog
from torch import Tensor

from fedlora.digests import new_digest
from fedlora.errors import FedLoraError
from fedlora.folders import make_folder, sync_folder
from fedlora.runs.tasks import Task
from fedlora.tensors.manifest import TensorManifest
from fedlora.tensors.safetensors_io import decode, encode

__all__ = ["PrivatePart", "PrivateParts"]

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 1024**2
_FILES = "*.private"
_INSTEAD = "taking an earlier one, or the global values"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PrivatePart:
    """What one task made. Equal is only the same one: tensors are not compared."""

    task_id: str
    round: int
    tensors: Mapping[str, Tensor]
    path: Path | None
    """None if it lives in memory only"""


class PrivateParts:
    """Private parts of one run at a time.

    Args:
        folder: of this worker alone; None keeps them in memory, and a restart loses them.
    """

    def __init__(self, folder: Path | None) -> None:
        self._root = folder
        self._run_id = ""
        self._parts: list[PrivatePart] = []

    def before(self, run_id: str, task: Task, manifest: TensorManifest) -> PrivatePart | None:
        """What a task begins from: the newest part that it has not made itself.

        Args:
            run_id: of the task.
            task: to train or to evaluate.
            manifest: tensors that the private part must have.

        Returns:
            None if there is none, and the global values are to be used.
        """
        self._open(run_id, manifest)
        for part in reversed(self._parts):
            if part.task_id == task.task_id:
                continue
            if difference := manifest.difference(TensorManifest.of(part.tensors)):
                log.warning("private_part_foreign", error=difference, action=_INSTEAD)
                continue
            return part
        return None

    def keep(self, run_id: str, task: Task, tensors: Mapping[str, Tensor]) -> None:
        """Makes what a task has trained the newest part; durable on return, where there is a disk.

        A disk that refuses is logged: the part is then in memory only.
        """
        self._open(run_id, TensorManifest.of(tensors))
        folder, path = self._folder(run_id), None
        if folder is not None:
            try:
                path = _write(folder, run_id, task, tensors)
            except OSError as error:
                log.warning("private_part_not_kept", error=str(error), action="a restart loses it")
        begun_from = [part for part in self._parts if part.task_id != task.task_id][-1:]
        made = PrivatePart(task_id=task.task_id, round=task.round, tensors=tensors, path=path)
        self._parts = [*begun_from, made]
        if path is not None:
            kept = {part.path for part in self._parts}
            for other in path.parent.glob(_FILES):
                if other not in kept:
                    other.unlink()

    def forget(self, run_id: str, task_id: str, manifest: TensorManifest) -> None:
        """Drops what a task has made, so that the next one begins from what came before it.

        Args:
            run_id: of the task.
            task_id: of the task whose outcome does not count.
            manifest: tensors that the private part has.
        """
        self._open(run_id, manifest)
        made = [part for part in self._parts if part.task_id == task_id]
        self._parts = [part for part in self._parts if part.task_id != task_id]
        for part in made:
            if part.path is not None:
                part.path.unlink(missing_ok=True)

    def _open(self, run_id: str, manifest: TensorManifest) -> None:
        if run_id == self._run_id:
            return
        self._run_id = run_id
        folder = self._folder(run_id)
        if folder is None:
            log.warning("private_parts_in_memory", action="set worker.cache_dir to keep them")
            self._parts = []
        else:
            read = [_read(path, run_id, manifest) for path in sorted(folder.glob(_FILES))]
            self._parts = [part for part in read if part is not None]

    def _folder(self, run_id: str) -> Path | None:
        # No string of the server's becomes a path.
        name = hashlib.sha256(run_id.encode()).hexdigest()[:32]
        return self._root / name if self._root else None


def _write(folder: Path, run_id: str, task: Task, tensors: Mapping[str, Tensor]) -> Path:
    make_folder(folder)
    made_for = {"run_id": run_id, "task_id": task.task_id, "round": task.round}
    head = json.dumps(made_for).encode() + b"\n"
    digest, temporary = new_digest(head), folder / "writing.tmp"
    with temporary.open("wb") as file:
        file.write(head)
        for _, data in encode(tensors).chunks(0, _CHUNK_BYTES):
            file.write(data)
            digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    numbers = [path.name.partition(".")[0] for path in folder.glob(_FILES)]
    number = 1 + max((int(n) for n in numbers if n.isdecimal()), default=0)
    path = folder / f"{number:08d}.{digest.hexdigest()}.private"
    temporary.replace(path)
    sync_folder(folder)
    return path


def _read(path: Path, run_id: str, manifest: TensorManifest) -> PrivatePart | None:
    """The part in a file, if it is the one that was written, for this run and these tensors."""
    try:
        data = path.read_bytes()
        if new_digest(data).hexdigest() != path.name.split(".")[1]:
            log.warning("private_part_damaged", file=str(path), action=_INSTEAD)
            return None
        head, _, payload = data.partition(b"\n")
        made_for = json.loads(head)
        if made_for["run_id"] != run_id:
            log.warning("private_part_foreign", file=str(path), run_id=run_id, action=_INSTEAD)
            return None
        return PrivatePart(
            task_id=made_for["task_id"],
            round=made_for["round"],
            tensors=decode(payload, manifest),
            path=path,
        )
    except (OSError, FedLoraError) as error:
        log.warning("private_part_foreign", file=str(path), error=str(error), action=_INSTEAD)
        return None
