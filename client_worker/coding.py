"""What a worker sends of an adapter it has trained, and what the run's codec then still owes.

What a codec leaves out of an update is kept like a private part (`client_worker.private_parts`): it
is durable before the update is sent, and a task that is given again after a restart begins from
what it began from the first time. So no crash loses it, and none counts it twice. It means
something only while the components of the adapter are the same ones: where the round's plan says
that the next version comes in others, nothing is kept.

An update that the server has not read has told it nothing: what it made is forgotten, and the next
one goes on from what the unread one began from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from client_worker.components import chosen_components
from client_worker.loading import LoadedTrainer
from client_worker.parts import pick, sent_manifest
from client_worker.private_parts import PrivateParts
from fedlora.codecs.spec import CodecSpec
from fedlora.codecs.updates import CodedUpdate, coded_update, create_codec
from fedlora.runs.plan import Selection
from fedlora.runs.tasks import Registration, Task, TaskKind
from fedlora.tensors.manifest import DataType, TensorManifest

__all__ = ["UpdateCoder"]


class UpdateCoder:
    """Writes updates as the run asks for them.

    Args:
        residuals: keeps what the codec has left out.
    """

    def __init__(self, residuals: PrivateParts) -> None:
        self._residuals = residuals

    def update(
        self, task: Task, loaded: LoadedTrainer, registration: Registration, *, counts: bool
    ) -> CodedUpdate:
        """What to send of the adapter in the model, which has begun from the task's version.

        Args:
            task: in hand.
            loaded: of the task.
            registration: of the run.
            counts: whether it was trained on any example. What is owed stays owed where it was
                not: the server gives such an update no weight.

        Raises:
            FedLoraError: NOT_FINITE for a change that the codec cannot write.
        """
        codec = _codec_of(task, loaded)
        if codec is None:
            return CodedUpdate(tensors=_plain_update(task, loaded), residual={})
        residual: Mapping[str, Tensor] = {}
        kept = _kept_manifest(task, loaded) if counts else None
        if kept is not None:
            before = self._residuals.before(registration.run_id, task, kept)
            residual = before.tensors if before else _zeros(kept)
        coded = coded_update(
            create_codec(codec),
            pick(loaded.trainer.trained_values(), sent_manifest(loaded.manifest, task.plan)),
            loaded.held.tensors,
            residual,
        )
        # All of it: of parts that the round does not send, what they are owed already.
        owed = {} if kept is None else {**residual, **coded.residual}
        return CodedUpdate(tensors=coded.tensors, residual=owed)

    def keep(self, task: Task, registration: Registration, residual: Mapping[str, Tensor]) -> None:
        """Makes what an update has left out the newest, once nothing but sending it is left."""
        if residual:
            self._residuals.keep(registration.run_id, task, residual)

    def feeds_back(self, task: Task, loaded: LoadedTrainer) -> bool:
        """Whether a task's update makes up for the one before."""
        return _kept_manifest(task, loaded) is not None

    def unread(
        self, task_id: str, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> None:
        """Takes back what an update has left out, since nobody has read that update.

        Args:
            task_id: of the task it was made for.
            task: in hand; it may be the same.
            loaded: of the task in hand.
            registration: of the run.
        """
        kept = _kept_manifest(task, loaded)
        if kept is not None:
            self._residuals.forget(registration.run_id, task_id, kept)


def _plain_update(task: Task, loaded: LoadedTrainer) -> Mapping[str, Tensor]:
    """What the plan asks for of the adapter as it is now trained."""
    trained = loaded.trainer.adapter()
    update = pick(trained, sent_manifest(loaded.manifest, task.plan))
    if task.plan.selection is Selection.ALL:
        return update
    return chosen_components(
        update, trained, loaded.held.tensors, plan=task.plan, shape=loaded.shape
    )


def _codec_of(task: Task, loaded: LoadedTrainer) -> CodecSpec | None:
    """Only training on a party's data is coded; the first adapter and refinements are not."""
    run, *_ = loaded.assignment
    return run.codec if task.kind is TaskKind.TRAIN else None


def _kept_manifest(task: Task, loaded: LoadedTrainer) -> TensorManifest | None:
    """What is kept of a task's residual; None where it would mean nothing to the next one.

    The whole adapter: the next round may ask for other parts than this one.
    """
    codec = _codec_of(task, loaded)
    if codec is None or not (codec.error_feedback and task.plan.keeps_basis):
        return None
    return TensorManifest(
        tensors=tuple(replace(t, dtype=DataType.F32) for t in loaded.manifest.tensors)
    )


def _zeros(manifest: TensorManifest) -> dict[str, Tensor]:
    return {info.name: torch.zeros(info.shape) for info in manifest.tensors}
