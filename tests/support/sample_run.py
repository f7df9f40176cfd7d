"""A run with its rounds, built by formula: plausible in shape, exact in its sums, no randomness."""

from __future__ import annotations

import math
from dataclasses import replace

from fedlora.adapters.spec import AdaptedModule, AdapterLayout, AdapterSpec, BaseModel, TaskType
from fedlora.runs.method import MethodSpec
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import (
    Certificate,
    CertificateEntry,
    RoundReport,
    Run,
    UpdateReport,
    WorkerEvaluation,
    WorkerInfo,
    WorkerState,
)
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Evaluation, EvaluationScope, EvaluationSplit

WORKERS = ("worker-0", "worker-1", "worker-2", "worker-3")
EXAMPLES = (400, 250, 220, 130)


def sample_spec(**changes) -> RunSpec:
    """A classification run of four workers."""
    spec = RunSpec(
        name="sample",
        adapter=AdapterSpec(
            base_model=BaseModel(model_id="package:some_encoder"),
            task_type=TaskType.SEQUENCE_CLASSIFICATION,
            target_modules=("query", "key", "value", "dense"),
            modules_to_save=("classifier",),
            labels=("admin", "fonts", "web"),
        ),
        method=MethodSpec(name="flora_na", options={"max_sweeps": 100}),
        rounds=RoundRules(num_rounds=6, min_workers=4, quorum=3),
        partition=PartitionSpec(num_slots=4),
        seed=7,
    )
    return replace(spec, **changes)


def sample_layout(num_layers: int = 6) -> AdapterLayout:
    names = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    return AdapterLayout(
        modules=tuple(
            AdaptedModule(path=f"encoder.layer.{i}.{name}", in_features=384, out_features=384)
            for i in range(num_layers)
            for name in names
        ),
        saved_tensors=(),
        base_fingerprint="sha256:" + "ab" * 32,
    )


def sample_run(phase: RunPhase = RunPhase.COMPLETED, **changes) -> Run:
    run = Run(
        run_id="run-0123abcd",
        spec=sample_spec(),
        phase=phase,
        round=6,
        adapter_version=6,
        workers=tuple(
            WorkerInfo(
                name=name,
                state=WorkerState.READY,
                capabilities=Capabilities(device_type="cpu", device_name="cpu"),
                rank=8,
                data_slot=i,
                num_updates=6,
            )
            for i, name in enumerate(WORKERS)
        ),
        created_at=1_800_000_000.0,
        layout=sample_layout(),
    )
    return replace(run, **changes)


def sample_round(round: int, *, certified: bool = True, metric: str = "accuracy") -> RoundReport:
    """Round `round`: scores rise towards 0.8, errors fall with depth and round."""
    level = 0.8 - 0.5 * math.exp(-0.6 * round)
    updates, evaluations = [], []
    for i, (name, count) in enumerate(zip(WORKERS, EXAMPLES, strict=True)):
        shift = 0.03 * (i - 1.5)
        updates.append(
            UpdateReport(
                worker=name,
                num_examples=count,
                weight=count / sum(EXAMPLES),
                total_bytes=1_500_000,
                digest=f"{round:02d}{i:02d}" * 16,
                rank=8,
                metrics={"train_loss": 1.5 / round + shift, "train_seconds": 7.0 + i},
                evaluations=(
                    Evaluation(
                        scope=EvaluationScope.LOCAL,
                        split=EvaluationSplit.HELD_OUT,
                        num_examples=count // 10,
                        metrics={metric: level + 0.08 + shift, "loss": 0.7},
                    ),
                ),
                elapsed_seconds=8.0 + i,
            )
        )
        evaluations.append(
            WorkerEvaluation(
                worker=name,
                evaluations=(
                    Evaluation(
                        scope=EvaluationScope.GLOBAL,
                        split=EvaluationSplit.HELD_OUT,
                        num_examples=count // 10,
                        metrics={metric: level + shift, "loss": 0.8},
                    ),
                    Evaluation(
                        scope=EvaluationScope.GLOBAL,
                        split=EvaluationSplit.TEST,
                        num_examples=500,
                        metrics={metric: level - 0.02, "loss": 0.9},
                    ),
                ),
            )
        )
    return RoundReport(
        round=round,
        method="flora_na",
        base_version=round - 1,
        adapter_version=round,
        adapter_digest=f"{round:064d}",
        cohort=WORKERS,
        updates=tuple(updates),
        evaluations=tuple(evaluations),
        certificate=sample_certificate(round) if certified else None,
        phase_seconds={"training": 11.0, "aggregating": 0.9, "evaluating": 3.1},
        bytes_up=6_000_000,
        bytes_down=12_000_000,
        metrics={
            f"test_{metric}": level - 0.02,
            f"held_out_{metric}": level,
            f"local_{metric}": level + 0.08,
            "local_global_gap": 0.08 / round,
        },
    )


def sample_certificate(round: int) -> Certificate:
    modules = tuple(
        _entry(m.path, 0.5 + 0.35 * math.sin(1.7 * i), round)
        for i, m in enumerate(sample_layout().modules)
    )
    return Certificate(
        method="flora_na", overall=_entry("", 0.5, round), modules=modules, seconds=0.4
    )


def _entry(module: str, level: float, round: int) -> CertificateEntry:
    bound, published, mean = 0.06 * level, 0.11 * level, 0.32 * level
    return CertificateEntry(
        module=module,
        ideal_norm=2.0,
        change_norm=2.0 / round,
        relative_error=published / round,
        factor_mean_error=mean / round,
        lower_bound=bound / round,
        relative_error_vs_change=published,
        factor_mean_error_vs_change=mean,
        lower_bound_vs_change=bound,
        gap_closed=(mean**2 - published**2) / (mean**2 - bound**2),
        rank=8,
        effective_rank=11.3,
        measurements={"sweeps": 12.0},
        spectrum=tuple(2.0 * (1 + level) ** -i for i in range(16)) if module else (),
    )
