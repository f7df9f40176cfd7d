"""What a task begins from: the global adapter, and over it the worker's own private parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
from torch import Tensor

from client_worker.asking import Asking
from client_worker.held import HeldAdapter, laid_over
from client_worker.membership import Assignment
from client_worker.parts import private_manifest
from client_worker.ports import Federation, Trainer
from client_worker.private_parts import PrivatePart, PrivateParts
from fedlora.adapters.extras import extra_manifest
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.shape import AdapterShape
from fedlora.runs.tasks import AdapterHeader, Registration, Task
from fedlora.tensors.manifest import TensorManifest
from fedlora.tensors.safetensors_io import decode_mapped

__all__ = ["AdapterLoader", "LoadedTrainer"]

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class LoadedTrainer:
    """A trainer, what it was made for, and which adapter is in it."""

    trainer: Trainer
    assignment: Assignment
    shape: AdapterShape
    """of an adapter of this run at this worker's rank"""
    held: HeldAdapter = field(default_factory=lambda: HeldAdapter(tensors={}))
    """the global adapter, as last downloaded"""
    began_from: tuple[HeldAdapter, PrivatePart | None] | None = None
    """what is in the model; None if it is freshly attached or trained"""
    pristine: bool = True
    """as attached: neither trained nor replaced"""

    @property
    def manifest(self) -> TensorManifest:
        """Every tensor that a worker's own adapter may have, at the rank it has now."""
        shape = replace(self.shape, rank=self.trainer.rank)
        return shape.manifest((*shape.parts, Part.CORE))

    @property
    def is_own(self) -> bool:
        """Whether what is in the model is this worker's, and not just what was published."""
        return self.began_from is None or self.began_from[1] is not None

    @property
    def base_change(self) -> dict[str, Tensor]:
        """What the run has added to the base model, as last downloaded."""
        added = (Part.BASE_A, Part.BASE_B)
        return {n: t for n, t in self.held.tensors.items() if parse_key(n).part in added}


class AdapterLoader:
    """Brings adapters into the model.

    Args:
        federation: the server.
        asking: the way to it.
        private: this worker's own parts.
        folder: for downloads.
    """

    def __init__(
        self, federation: Federation, asking: Asking, private: PrivateParts, *, folder: Path
    ) -> None:
        self._federation = federation
        self._asking = asking
        self._private = private
        self._folder = folder

    def bring(self, task: Task, loaded: LoadedTrainer, registration: Registration) -> None:
        """Puts into the model what a task begins from, unless it is there already."""
        if not loaded.held.is_version(registration.session_token, task.adapter_version):
            loaded.held = self._download(task, loaded)
        private = None
        manifest = private_manifest(loaded.manifest, task.plan)
        if manifest.tensors:
            private = self._private.before(registration.run_id, task, manifest)
        if loaded.began_from == (loaded.held, private):
            return
        loaded.began_from, loaded.pristine = None, False
        loaded.trainer.load_adapter(loaded.held.tensors, private.tensors if private else None)
        loaded.began_from = (loaded.held, private)
        log.info(
            "adapter_loaded",
            version=task.adapter_version,
            **({"private_of_round": private.round} if private else {}),
        )

    def _download(self, task: Task, loaded: LoadedTrainer) -> HeldAdapter:
        version, shape = task.adapter_version, loaded.shape
        base_bytes = shape.largest_base_bytes if task.plan.changes_base else 0

        extra_bytes = extra_manifest(loaded.manifest, task.plan.given_extras).data_bytes

        def pull(token: str) -> tuple[str, AdapterHeader, Path]:
            header, path = self._federation.pull_adapter(
                token,
                version,
                folder=self._folder,
                expected_bytes=loaded.manifest.data_bytes + base_bytes + extra_bytes,
                held_version=loaded.held.base_for(token, version),
            )
            return token, header, path

        token, header, path = self._asking.ask(f"pulling adapter version {version}", pull)
        log.info(
            "adapter_received",
            version=version,
            bytes=header.total_bytes,
            laid_over=header.held_version,
        )
        return laid_over(
            loaded.held,
            header,
            decode_mapped(path, header.manifest),
            session_token=token,
            shape=shape,
            given_extras=task.plan.given_extras,
        )
