"""What a run's plug-ins keep on the worker from round to round, and never send.

It is kept as a private part is (`client_worker.private_parts`): durable before the update is sent,
and a task that is given again after a restart begins from what it began from the first time. Each
tensor has the name of a tensor of the adapter, behind that of what it is to its plug-in. Where
plug-ins send tensors of theirs, what both sides remember must agree: what came of an update that
the server has not read is forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from client_worker.loading import LoadedTrainer
from client_worker.parts import sent_manifest
from client_worker.private_parts import PrivateParts
from fedlora.adapters.extras import extra_manifest
from fedlora.plugins import create_plugins
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Registration, Task
from fedlora.tensors.manifest import TensorManifest

__all__ = ["PluginMemory", "own_adapter_of"]


class PluginMemory:
    """The memory of one run's plug-ins at a time.

    Args:
        parts: keeps it.
    """

    def __init__(self, parts: PrivateParts) -> None:
        self._parts = parts

    def before(
        self, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> Mapping[str, Tensor]:
        """What a task begins from, by name; empty in a worker's first round."""
        manifest = _manifest(task, loaded)
        if not manifest.tensors:
            return {}
        part = self._parts.before(registration.run_id, task, manifest)
        return part.tensors if part else {}

    def keep(self, task: Task, registration: Registration, tensors: Mapping[str, Tensor]) -> None:
        """Makes what a task came to the newest; durable on return, where there is a disk."""
        if tensors:
            self._parts.keep(registration.run_id, task, tensors)

    def unread(
        self, task_id: str, task: Task, loaded: LoadedTrainer, registration: Registration
    ) -> None:
        """Takes back what a task came to, since the server has not read what it sent of it.

        Args:
            task_id: of the task whose update was not read.
            task: in hand; it may be the same.
            loaded: of the task in hand.
            registration: of the run.
        """
        if task.plan.sent_extras:
            self._parts.forget(registration.run_id, task_id, _manifest(task, loaded))


def own_adapter_of(run: RunSpec) -> str:
    """What the worker's own adapter is called in the memory; empty for a run without such."""
    owners = [f"{p.name}/own" for p in create_plugins(run.plugins) if p.traits.personal]
    return owners[0] if owners else ""


def _manifest(task: Task, loaded: LoadedTrainer) -> TensorManifest:
    run, *_ = loaded.assignment
    names = [f"{p.name}/{name}" for p in create_plugins(run.plugins) for name in p.traits.kept]
    if own := own_adapter_of(run):
        names.append(own)
    return extra_manifest(sent_manifest(loaded.manifest, task.plan), names)
