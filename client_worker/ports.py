"""What the runner needs of the outside, in domain words: a server and a trainer.

`client_worker.transport.client.FederationClient` is the server over gRPC,
`client_worker.training.trainer.LocalTrainer` the trainer; `client_worker.app` puts them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from client_worker.training.round_work import RoundWork
from fedlora.adapters.spec import AdapterLayout
from fedlora.runs.plan import RoundPlan
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import (
    Acknowledgement,
    AdapterHeader,
    Capabilities,
    Directive,
    Evaluation,
    EvaluationScope,
    Progress,
    Registration,
    Task,
    UpdateHeader,
    UploadStatus,
)
from fedlora.tensors.safetensors_io import Payload

__all__ = ["Federation", "Outcome", "Trainer", "TrainerFactory"]


class Federation(Protocol):
    """The server. Each method is one attempt; all raise FedLoraError."""

    def register(
        self, *, worker_name: str, run_name: str, instance_id: str, capabilities: Capabilities
    ) -> Registration:
        """Opens a session."""
        ...

    def confirm_adapter(self, token: str, layout: AdapterLayout) -> str:
        """Declares the adapter; returns the base fingerprint that the run is on."""
        ...

    def await_task(self, token: str, *, max_wait_seconds: float) -> Task:
        """The next task, or TaskKind.WAIT after the time given."""
        ...

    def pull_adapter(
        self,
        token: str,
        version: int,
        *,
        folder: Path,
        expected_bytes: int,
        held_version: int | None = None,
    ) -> tuple[AdapterHeader, Path]:
        """A version of the global adapter as a verified file in `folder`.

        A download that was cut goes on where it ended. `expected_bytes` sets the deadline. Of a
        version that the caller holds whole the server leaves out what has not changed since; the
        header's held_version says whether it did.
        """
        ...

    def upload_status(self, token: str, idempotency_key: str) -> UploadStatus:
        """Whether an update is here, or how much of it."""
        ...

    def push_update(
        self, header: UpdateHeader, payload: Payload, *, max_chunk_bytes: int
    ) -> Acknowledgement:
        """Sends what the server does not hold yet of an update."""
        ...

    def report_evaluation(
        self, token: str, task_id: str, evaluations: tuple[Evaluation, ...]
    ) -> None:
        """Scores of the global adapter."""
        ...

    def report_metrics(self, token: str, progress: Progress) -> None:
        """How far training has got."""
        ...

    def heartbeat(self, token: str, task_id: str, *, answered: bool) -> Directive | None:
        """Proof of life, and whether the task in hand still counts; None if that was not asked."""
        ...

    def leave(self, token: str, reason: str) -> None:
        """Ends the session."""
        ...


class Outcome(Protocol):
    """What a round of local training came to."""

    @property
    def num_examples(self) -> int:
        """Examples trained on; the update's weight in the mean."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """train_loss, train_seconds, ..."""
        ...

    @property
    def sent_extras(self) -> Mapping[str, torch.Tensor]:
        """What the run's plug-ins send beside the adapter."""
        ...

    @property
    def kept_extras(self) -> Mapping[str, torch.Tensor]:
        """What they keep for the worker's next round."""
        ...


class Trainer(Protocol):
    """The model with its adapter, and the data."""

    @property
    def layout(self) -> AdapterLayout:
        """Where the adapter attaches."""
        ...

    @property
    def rank(self) -> int:
        """Of the adapter now; training may lower it, and loading a version gives it that one's."""
        ...

    def begin(self, plan: RoundPlan) -> None:
        """Makes the freshly attached adapter the run's first version, whose parts `plan` trains."""
        ...

    def adapter(self) -> dict[str, torch.Tensor]:
        """The adapter as it is now, under PEFT's names, in the run's wire dtype."""
        ...

    def trained_values(self) -> dict[str, torch.Tensor]:
        """The same in the precision of training, for what never crosses the wire."""
        ...

    def load_adapter(
        self,
        tensors: Mapping[str, torch.Tensor],
        private: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Puts an adapter into the model; `private` takes the place of some of its tensors."""
        ...

    def train(self, work: RoundWork, extras: Mapping[str, torch.Tensor]) -> Outcome:
        """One round of local training, of the parts that the plan says and no other.

        `extras` are what plug-ins have kept, and what they are given beside the adapter.

        Raises:
            TaskAbandoned: soon after `work.should_abandon` has returned True.
        """
        ...

    def refine(self, work: RoundWork) -> Outcome:
        """The stage on a server's own data, after a round; as `train`."""
        ...

    def personalise(
        self, work: RoundWork, own: Mapping[str, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """Trains magnitudes of B from `own`, or from B's, and returns them by module; as `train`.

        The model has them in it afterwards.
        """
        ...

    def train_own(
        self, work: RoundWork, own: Mapping[str, torch.Tensor] | None
    ) -> dict[str, torch.Tensor]:
        """Trains an adapter of the worker's own from `own`, or from the global one in the model.

        As `train`; returns its tensors, which the model has in it afterwards.
        """
        ...

    def evaluate(
        self, scope: EvaluationScope, *, round: int, shard_index: int = 0, shard_count: int = 1
    ) -> tuple[Evaluation, ...]:
        """Scores of the adapter in the model, as of a round."""
        ...


TrainerFactory = Callable[[Registration], Trainer]
"""makes the trainer for a run, rank and data slot; this loads the base model"""

RankLimit = Callable[[RunSpec], int]
"""the largest rank that this worker can train of a run"""
