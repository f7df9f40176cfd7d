"""A run with a long past: everything that the database holds of it, and hardly a tensor.

Rows are made by formula in the shape that a real run leaves: per round 13 events, one update per
worker, one adapter, one report and one certificate. All rounds name the same small adapter file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save

from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord, WorkerRecord
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.sqlite import DATABASE_NAME, SqliteStateStore
from fedlora.adapters.spec import AdaptedModule, AdapterLayout, AdapterSpec, BaseModel, TaskType
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import (
    Certificate,
    CertificateEntry,
    EventType,
    RoundReport,
    RunEvent,
    UpdateReport,
    WorkerEvaluation,
    WorkerState,
)
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Evaluation, EvaluationScope, EvaluationSplit
from fedlora.runs.training import TrainingSpec
from fedlora.tensors.manifest import DataType

__all__ = ["LAYERS", "layout_of", "spec_of", "write_history"]

LAYERS = 12
"""adapted modules: those of a small encoder; a certificate has an entry for each"""

_RANK = 8


def layout_of(layers: int = LAYERS, width: int = 64) -> AdapterLayout:
    """An adapter of some layers."""
    modules = tuple(
        AdaptedModule(path=f"encoder.layer.{i}.query", in_features=width, out_features=width)
        for i in range(layers)
    )
    return AdapterLayout(modules=modules, saved_tensors=(), base_fingerprint="sha256:base")


def spec_of(name: str, *, num_rounds: int, num_workers: int, rank: int = _RANK) -> RunSpec:
    """A run of `num_workers` that needs all of them."""
    return RunSpec(
        name=name,
        adapter=AdapterSpec(
            base_model=BaseModel(model_id="model"),
            task_type=TaskType.SEQUENCE_CLASSIFICATION,
            r=rank,
            target_modules=("query",),
            labels=("a", "b"),
        ),
        rounds=RoundRules(num_rounds=num_rounds, min_workers=num_workers, quorum=num_workers),
        training=TrainingSpec(),
    )


def write_history(state_dir: Path, *, num_rounds: int, num_workers: int) -> RunState:
    """Writes a run in the training of the round after `num_rounds`; returns its state."""
    import torch

    blobs = BlobStore(state_dir)
    layout, names = layout_of(), [f"worker-{i}" for i in range(num_workers)]
    manifest = layout.manifest(_RANK, DataType.F32)
    made = blobs.new_temporary()
    made.write_bytes(
        save({t.name: torch.ones(t.shape) for t in manifest.tensors}, {"format": "pt"})
    )
    size, digest = made.stat().st_size, blobs.adopt(made)
    state = RunState(
        run_id="history-0",
        spec=spec_of("history", num_rounds=num_rounds + 1, num_workers=num_workers),
        created_at=0.0,
        phase=RunPhase.TRAINING,
        layout=layout,
        round=num_rounds + 1,
        version=num_rounds,
        adapter=_adapter(num_rounds, digest, size, names),
        workers={name: _worker(name) for name in names},
        cohort=tuple(names),
        last_sequence=num_rounds * (2 * num_workers + 5),
    )
    store = SqliteStateStore(state_dir / DATABASE_NAME)
    # Made once and thrown away: nothing of it needs to survive a power cut.
    store._db.execute("PRAGMA synchronous = OFF")  # noqa: SLF001
    sequence = 0
    for round in range(1, num_rounds + 1):
        events = tuple(_events(round, sequence, names, digest, size))
        sequence += len(events)
        store.commit(
            Transaction(
                state=state,
                clock=float(round),
                events=events,
                updates=tuple(_update(round, name, size) for name in names),
                adapters=(_adapter(round, digest, size, names),),
                reports=(_report(round, digest, size, names),),
                certificates=((round, _certificate(round)),),
            )
        )
    assert sequence == state.last_sequence
    store.close()
    return state


def _worker(name: str) -> WorkerRecord:
    return WorkerRecord(
        name=name,
        state=WorkerState.READY,
        epoch=1,
        session_hash="0" * 64,
        instance_id="1",
        capabilities=Capabilities(device_name="cpu"),
        rank=_RANK,
        confirmed=True,
    )


def _events(round: int, last: int, names: list[str], digest: str, size: int) -> Iterator[RunEvent]:
    facts: list[tuple[EventType, str, dict[str, object]]] = [
        (EventType.ROUND_STARTED, "", {"cohort": names, "base_version": round - 1}),
        *(
            (EventType.UPDATE_COMMITTED, name, {"num_examples": 100, "total_bytes": size,
             "digest": f"{round:060d}{i:04d}", "rank": _RANK, "metrics": {"train_loss": 1 / round}})
            for i, name in enumerate(names)
        ),
        (EventType.ROUND_CLOSED, "", {"updates": len(names), "missing": []}),
        (EventType.ADAPTER_PUBLISHED, "", {"adapter_version": round, "digest": digest,
         "total_bytes": size, "rank": _RANK}),
        *(
            (EventType.EVALUATION_REPORTED, name, {"test_accuracy": 0.5, "test_num_examples": 100})
            for name in names
        ),
        (EventType.ROUND_COMPLETED, "", {"test_accuracy": 0.5}),
        (EventType.CERTIFICATE_READY, "", {"relative_error": 0.1, "seconds": 0.4}),
    ]  # fmt: skip
    for i, (event_type, worker, detail) in enumerate(facts):
        yield RunEvent(
            sequence=last + 1 + i,
            type=event_type,
            time=1.8e9 + round + i / 20,
            round=round,
            worker=worker,
            detail=detail,
        )


def _scores(scope: EvaluationScope, round: int) -> tuple[Evaluation, ...]:
    return tuple(
        Evaluation(
            scope=scope,
            split=split,
            num_examples=100,
            metrics={"accuracy": 1 - 1 / (1 + round), "loss": 1 / round},
        )
        for split in (EvaluationSplit.HELD_OUT, EvaluationSplit.TEST)
    )


def _update(round: int, name: str, size: int) -> UpdateRecord:
    return UpdateRecord(
        update_id=f"{round}-{name}",
        round=round,
        worker=name,
        idempotency_key=f"history-0/{round}/train/{name}.{round:016x}",
        digest=f"{round:064d}",
        total_bytes=size,
        base_version=round - 1,
        rank=_RANK,
        num_examples=100,
        metrics={"train_loss": 1 / round, "train_seconds": 7.5},
        evaluations=_scores(EvaluationScope.LOCAL, round),
        elapsed_seconds=8.0,
        given_rank=_RANK,
    )


def _adapter(round: int, digest: str, size: int, names: list[str]) -> AdapterRecord:
    return AdapterRecord(
        version=round,
        round=round,
        digest=digest,
        total_bytes=size,
        rank=_RANK,
        measurements={m.path: {"sweeps": 12.0, "member": 1.0} for m in layout_of().modules},
        weights={name: 1 / len(names) for name in names},
    )


def _report(round: int, digest: str, size: int, names: list[str]) -> RoundReport:
    return RoundReport(
        round=round,
        method="fedit",
        base_version=round - 1,
        adapter_version=round,
        adapter_digest=digest,
        cohort=tuple(names),
        updates=tuple(
            UpdateReport(
                worker=name,
                num_examples=100,
                weight=1 / len(names),
                total_bytes=size,
                digest=f"{round:060d}{i:04d}",
                rank=_RANK,
                metrics={"train_loss": 1 / round, "train_seconds": 7.5},
                evaluations=_scores(EvaluationScope.LOCAL, round),
                elapsed_seconds=8.0,
            )
            for i, name in enumerate(names)
        ),
        evaluations=tuple(
            WorkerEvaluation(worker=name, evaluations=_scores(EvaluationScope.GLOBAL, round))
            for name in names
        ),
        certificate=None,
        phase_seconds={"training": 11.0, "aggregating": 0.9, "evaluating": 3.1},
        bytes_up=size * len(names),
        bytes_down=size * len(names),
        metrics={"test_accuracy": 0.5, "held_out_accuracy": 0.5, "local_global_gap": 0.01},
    )


def _certificate(round: int) -> Certificate:
    entries = tuple(_entry(m.path, round) for m in layout_of().modules)
    return Certificate(method="fedit", overall=_entry("", round), modules=entries, seconds=0.4)


def _entry(module: str, round: int) -> CertificateEntry:
    return CertificateEntry(
        module=module,
        ideal_norm=2.0,
        change_norm=2.0 / round,
        relative_error=1 / 3,
        factor_mean_error=2 / 3,
        lower_bound=1 / 7,
        relative_error_vs_change=1 / 9,
        factor_mean_error_vs_change=2 / 9,
        lower_bound_vs_change=1 / 11,
        gap_closed=6 / 7,
        rank=_RANK,
        effective_rank=11.3,
        measurements={"sweeps": 12.0},
        spectrum=tuple(2.0 / (i + 3) for i in range(16)) if module else (),
    )
