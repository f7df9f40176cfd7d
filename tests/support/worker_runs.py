"""Runs and data files for tests of the worker's inside, on the models of `tiny_models`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from support.tiny_models import TEXTS

from client_worker.data.config import DataConfig
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.spec import AdapterSpec, BaseModel, TaskType
from fedlora.runs.rounds import RoundRules
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import TrainingSpec

LABELS = ("admin", "games", "net")


def classifier_spec(model: str | Path, **changes) -> AdapterSpec:
    spec = AdapterSpec(
        base_model=BaseModel(model_id=str(model)),
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
        r=4,
        lora_alpha=8.0,
        target_modules=("query", "dense"),
        modules_to_save=("classifier",),
        labels=LABELS,
    )
    return replace(spec, **changes)


def causal_spec(model: str | Path, **changes) -> AdapterSpec:
    spec = AdapterSpec(
        base_model=BaseModel(model_id=str(model)),
        task_type=TaskType.CAUSAL_LM,
        r=4,
        lora_alpha=8.0,
        target_modules=("k_proj", "down_proj"),
    )
    return replace(spec, **changes)


def worker_run(adapter: AdapterSpec, *, num_rounds: int = 3, **training) -> RunSpec:
    settings = {"learning_rate": 1e-2, "batch_size": 4, "max_sequence_tokens": 32, **training}
    return RunSpec(
        name="test",
        adapter=adapter,
        rounds=RoundRules(num_rounds=num_rounds),
        training=TrainingSpec(**settings),
        seed=11,
    )


def trainer_for(run: RunSpec, data: DataConfig, **changes) -> LocalTrainer:
    options = {"rank": run.adapter.r, "slot": None, "device": "cpu", "threads": 1, **changes}
    return LocalTrainer.create(run, data=data, **options)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def labelled_rows(count: int, *, test: int = 0) -> list[dict[str, object]]:
    """Texts whose words tell their label; the last `test` of them are test rows."""
    words = {"admin": "file backup", "games": "game cards", "net": "network protocol"}
    return [
        {
            "text": f"{words[LABELS[i % 3]]} {TEXTS[i % len(TEXTS)].split()[-1 - i % 2]}",
            "label": LABELS[i % 3],
            "split": "test" if i >= count - test else "train",
        }
        for i in range(count)
    ]


def completion_rows(count: int) -> list[dict[str, object]]:
    """Prompts and completions of unequal lengths."""
    return [
        {
            "prompt": " ".join(TEXTS[i % len(TEXTS)].split()[: 2 + i % 4]),
            "completion": " ".join(TEXTS[(i + 1) % len(TEXTS)].split()[: 1 + i % 3]),
        }
        for i in range(count)
    ]
