"""The update that was trained and is not acknowledged yet, kept over a restart.

Two files per worker, the payload and what belongs in its header; the second is written last and
names the first's digest, so a process that dies in between has kept nothing. There is no fsync:
the worst a lost file costs is to train once more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import structlog

from fedlora.errors import FedLoraError
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit, Task
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest
from fedlora.tensors.safetensors_io import Payload, decode, encode

__all__ = ["LeftBehind", "Outbox", "TrainedUpdate", "idempotency_key"]

log = structlog.get_logger(__name__)

_CHUNK_BYTES = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedUpdate:
    """An update before it is sent."""

    payload: Payload
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    evaluations: tuple[Evaluation, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftBehind:
    """An update that was kept, and whose answer never came."""

    task_id: str
    idempotency_key: str
    """under which it was sent, if it was"""


def idempotency_key(task_id: str, digest: bytes) -> str:
    """By content: the same bytes resume or are acknowledged again, others are new."""
    return f"{task_id}.{digest.hex()[:32]}"


class Outbox:
    """Holds at most one update.

    Args:
        folder: of this worker alone; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def keep(self, task: Task, update: TrainedUpdate) -> None:
        """Writes an update down; a disk that refuses is logged, the update is sent all the same."""
        if self._folder is None:
            return
        description = {
            "task_id": task.task_id,
            "base_version": task.adapter_version,
            "digest": update.payload.digest.hex(),
            "num_examples": update.num_examples,
            "metrics": dict(update.metrics),
            "evaluations": [asdict(e) for e in update.evaluations],
            "tensors": [asdict(t) for t in update.payload.manifest.tensors],
        }
        try:
            self.clear()
            self._folder.mkdir(parents=True)
            with (self._folder / "payload.safetensors").open("wb") as file:
                for _, data in update.payload.chunks(0, _CHUNK_BYTES):
                    file.write(data)
            temporary = self._folder / "update.json.tmp"
            temporary.write_text(json.dumps(description))
            temporary.replace(self._folder / "update.json")
        except OSError as error:
            log.warning("update_not_kept", error=str(error))

    def find(self, task: Task) -> TrainedUpdate | None:
        """The update kept for a task, if its bytes are still the ones that were trained."""
        if self._folder is None:
            return None
        try:
            kept = json.loads((self._folder / "update.json").read_text())
            if (kept["task_id"], kept["base_version"]) != (task.task_id, task.adapter_version):
                return None
            manifest = TensorManifest(tensors=tuple(_tensor(t) for t in kept["tensors"]))
            update = TrainedUpdate(
                payload=encode(decode(self._folder / "payload.safetensors", manifest)),
                num_examples=kept["num_examples"],
                metrics=kept["metrics"],
                evaluations=tuple(_evaluation(e) for e in kept["evaluations"]),
            )
            intact = update.payload.digest.hex() == kept["digest"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, FedLoraError) as error:
            log.warning("kept_update_unreadable", error=str(error), action="training again")
            return None
        if not intact:
            log.warning("kept_update_damaged", action="training again")
        return update if intact else None

    def left_behind(self, task: Task) -> LeftBehind | None:
        """The update kept for another task than this one; None where there is none."""
        if self._folder is None:
            return None
        try:
            kept = json.loads((self._folder / "update.json").read_text())
            task_id, digest = str(kept["task_id"]), bytes.fromhex(kept["digest"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("kept_update_unreadable", error=str(error), action="forgetting it")
            return None
        if task_id == task.task_id:
            return None
        return LeftBehind(task_id=task_id, idempotency_key=idempotency_key(task_id, digest))

    def clear(self) -> None:
        """Forgets the update."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _tensor(kept: Any) -> TensorInfo:
    return TensorInfo(name=kept["name"], shape=tuple(kept["shape"]), dtype=DataType(kept["dtype"]))


def _evaluation(kept: Any) -> Evaluation:
    counts = kept["label_counts"]
    return Evaluation(
        scope=EvaluationScope(kept["scope"]),
        split=EvaluationSplit(kept["split"]),
        num_examples=kept["num_examples"],
        metrics=kept["metrics"],
        label_counts=LabelCounts(**{k: tuple(v) for k, v in counts.items()}) if counts else None,
        experience=kept["experience"],
    )
