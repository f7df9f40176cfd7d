"""Run specifications and states for tests."""

from __future__ import annotations

from dataclasses import replace

from aggregator_service.rounds.events import (
    AdapterAggregated,
    AdapterConfirmed,
    Event,
    RunStarted,
    Transition,
    UpdateCommitted,
    WorkerRegistered,
)
from aggregator_service.rounds.machine import step
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from fedlora.adapters.spec import AdaptedModule, AdapterLayout, AdapterSpec, BaseModel, TaskType
from fedlora.codecs.spec import CodecName
from fedlora.runs.method import MethodSpec
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.plan import RoundPlan, WorkerFeature
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Role
from fedlora.runs.training import TrainingSpec
from fedlora.tensors.manifest import DataType, TensorInfo

LAYOUT = AdapterLayout(
    modules=(
        AdaptedModule(path="encoder.0.query", in_features=12, out_features=20),
        AdaptedModule(path="encoder.1.dense", in_features=20, out_features=7),
    ),
    saved_tensors=(
        TensorInfo(name="base_model.model.classifier.weight", shape=(3, 7), dtype=DataType.F32),
        TensorInfo(name="base_model.model.classifier.bias", shape=(3,), dtype=DataType.F32),
    ),
    base_fingerprint="sha256:base",
)


def run_spec(
    name: str = "test",
    *,
    method: str = "fedit",
    num_rounds: int = 2,
    num_workers: int = 2,
    slots: int = 0,
    rank: int = 4,
    **rules: object,
) -> RunSpec:
    return RunSpec(
        name=name,
        adapter=AdapterSpec(
            base_model=BaseModel(model_id="test-model"),
            task_type=TaskType.SEQUENCE_CLASSIFICATION,
            r=rank,
            lora_alpha=8.0,
            target_modules=("query", "dense"),
            modules_to_save=("classifier",),
            labels=("a", "b", "c"),
        ),
        method=MethodSpec(name=method),
        rounds=replace(
            RoundRules(
                num_rounds=num_rounds,
                min_workers=num_workers,
                quorum=num_workers,
                deadline_seconds=60.0,
            ),
            **rules,
        ),
        training=TrainingSpec(learning_rate=1e-3),
        partition=PartitionSpec(num_slots=slots) if slots else None,
        seed=7,
    )


class MachineDriver:
    """Feeds a state machine and keeps what it says."""

    def __init__(self, spec: RunSpec, plans: tuple[RoundPlan, ...] = (RoundPlan(),)) -> None:
        self.state = RunState(run_id="run-1", spec=spec, plans=plans, created_at=0.0)
        self.now = 0.0
        self.transitions: list[Transition] = []

    def feed(self, event: Event, *, after: float = 1.0) -> Transition:
        self.now += after
        transition = step(self.state, event, self.now)
        self.state = transition.state
        self.transitions.append(transition)
        return transition

    def join(
        self,
        *names: str,
        max_rank: int = 0,
        features: tuple[WorkerFeature, ...] = (),
        role: Role = Role.PARTY,
        codecs: tuple[CodecName, ...] = (),
        preferred_data_slot: int | None = None,
    ) -> None:
        for name in names:
            self.feed(
                WorkerRegistered(
                    name=name,
                    instance_id=f"i-{self.now}",
                    session_hash=f"hash-{name}-{self.now}",
                    capabilities=Capabilities(
                        max_rank=max_rank,
                        features=features,
                        role=role,
                        codecs=codecs,
                        preferred_data_slot=preferred_data_slot,
                    ),
                    takes_mixed_ranks=True,
                )
            )
            self.feed(AdapterConfirmed(name, LAYOUT))

    def start_training(self, *names: str) -> None:
        """Runs until the first round trains."""
        self.feed(RunStarted())
        self.join(*names)
        self.commit(self.state.cohort[0], round=0)

    def commit(
        self, worker: str, *, round: int | None = None, num_examples: int = 10
    ) -> Transition:
        return self.feed(UpdateCommitted(self.update(worker, round, num_examples)))

    def update(self, worker: str, round: int | None = None, num_examples: int = 10) -> UpdateRecord:
        round = self.state.round if round is None else round
        return UpdateRecord(
            update_id=f"u-{round}-{worker}",
            round=round,
            worker=worker,
            idempotency_key=f"k-{round}-{worker}",
            digest="0" * 64,
            total_bytes=100,
            base_version=self.state.version or 0,
            rank=4,
            num_examples=num_examples,
        )

    def aggregated(self) -> Transition:
        return self.feed(
            AdapterAggregated(
                AdapterRecord(
                    version=(self.state.version or 0) + 1,
                    round=self.state.round,
                    digest="1" * 64,
                    total_bytes=100,
                    rank=4,
                    weights=dict.fromkeys(self.state.updates, 1 / max(1, len(self.state.updates))),
                )
            )
        )
