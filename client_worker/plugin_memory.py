"""What a run's plug-ins keep on the worker from round to round, and never send.

It is kept as a private part is (`client_worker.private_parts`): durable before the update is sent,
and a task that is given again after a restart begins from what it began from the first time. Each
tensor has the name of a tensor of the adapter, behind that of what it is to its plug-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from client_worker.loading import LoadedTrainer
from client_worker.parts import sent_manifest
from client_worker.private_parts import PrivateParts
from fedlora.adapters.names import extra_key, split_extra
from fedlora.plugins import create_plugins
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Registration, Task
from fedlora.tensors.manifest import DataType, TensorManifest

__all__ = ["PluginMemory", "named", "own_adapter_of"]


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


def own_adapter_of(run: RunSpec) -> str:
    """What the worker's own adapter is called in the memory; empty for a run without such."""
    owners = [f"{p.name}/own" for p in create_plugins(run.plugins) if p.traits.personal]
    return owners[0] if owners else ""


def named(memory: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """One thing that is kept, by the names of the adapter's tensors."""
    parts = {split_extra(key): tensor for key, tensor in memory.items()}
    return {key: tensor for (kept, key), tensor in parts.items() if kept == name}


def _manifest(task: Task, loaded: LoadedTrainer) -> TensorManifest:
    run, *_ = loaded.assignment
    names = [own] if (own := own_adapter_of(run)) else []
    adapter = sent_manifest(loaded.manifest, task.plan)
    return TensorManifest(
        tensors=tuple(
            replace(info, name=extra_key(name, info.name), dtype=DataType.F32)
            for name in names
            for info in adapter.tensors
        )
    )
