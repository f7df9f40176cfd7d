"""Continual runs of real workers over gRPC: tasks or classes that join, and who lacks them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.planned_worker import Recording
from support.tiny_models import TEXTS
from support.worker_federation import Finished, federate, of_part, run_of
from support.worker_runs import classifier_spec, labelled_rows
from torch import Tensor

from fedlora.proto.v1 import run_pb2
from fedlora.runs.continual import ContinualSpec

TASKS = ("mail", "shell")
ROWS = [
    row | {"task": TASKS[i // 3 % 2], "split": "test" if i % 4 == 0 else "train"}
    for i, row in enumerate(labelled_rows(36))
]
HAS = {"w-0": ROWS, "w-1": [r for r in ROWS if r["task"] == "mail" or r["split"] == "test"]}
"""one test set, and the second worker has nothing of the second task to train on"""


def count(worker: str, task: str, split: str) -> int:
    return sum(row["task"] == task and row["split"] == split for row in HAS[worker])


def tensors_of(recording: Recording, round: int, worker: str) -> dict[str, Tensor]:
    (payload,) = [
        p
        for p in recording.up
        if p.header.round == round and p.header.task_id.endswith(f"/{worker}")
    ]
    return payload.tensors


def scored(report: run_pb2.RoundReport) -> dict[int, set[int]]:
    """How many test rows each worker has scored, by experience."""
    found: dict[int, set[int]] = {}
    for of_worker in report.evaluations:
        for e in of_worker.evaluations:
            if e.split == run_pb2.EVALUATION_SPLIT_TEST:
                found.setdefault(e.experience, set()).add(e.num_examples)
    return found


@pytest.mark.parametrize("method", ["fedit", "fed_talora"])
async def test_a_task_that_joins_is_trained_by_those_who_have_it_and_scored_by_all(
    method: str, tmp_path: Path, bert: Path, recording: Recording
):
    stream = ContinualSpec(order=TASKS, sizes=(1, 1), rounds_per_experience=1, column="task")
    spec = replace(run_of(classifier_spec(bert), method), continual=stream)
    done = await federate(tmp_path, spec, rows=HAS)
    first, second = done.reports
    for report, task in zip(done.reports, TASKS, strict=True):
        for update in report.updates:
            held_out = sum(
                e.num_examples
                for e in update.evaluations
                if e.experience == TASKS.index(task) + 1
                and e.split == run_pb2.EVALUATION_SPLIT_HELD_OUT
            )
            assert update.num_examples + held_out == count(update.worker, task, "train")
    with_it, without = sorted(second.updates, key=lambda update: update.worker)
    assert (with_it.weight, without.weight, without.num_examples) == (1.0, 0.0, 0)
    assert not without.metrics
    # Who has nothing hands back what it was given, and what is published is the other's alone.
    sent = tensors_of(recording, 2, "w-0")
    unchanged = tensors_of(recording, 2, "w-1")
    given = done.versions[1]
    assert all(torch.equal(tensor, given[name]) for name, tensor in unchanged.items())
    assert not all(torch.equal(tensor, given[name]) for name, tensor in sent.items())
    if method == "fedit":
        assert all(torch.equal(done.versions[2][name], tensor) for name, tensor in sent.items())
    # All are asked about every task so far, each about its half of the test rows.
    assert scored(first).keys() == {1}
    assert scored(second).keys() == {1, 2}
    assert all(min(numbers) > 0 for numbers in scored(second).values())
    metrics = second.metrics
    totals = [metrics[f"test_experience_{e}_num_examples"] for e in (1, 2)]
    assert totals == [count("w-0", task, "test") for task in TASKS]
    means = [metrics[f"test_experience_{e}_accuracy"] for e in (1, 2)]
    assert metrics["test_accuracy"] == pytest.approx(
        sum(n * mean for n, mean in zip(totals, means, strict=True)) / sum(totals)
    )
    lost = first.metrics["test_experience_1_accuracy"] - means[0]
    assert metrics["test_forgetting"] == pytest.approx(lost)
    assert "test_forgetting" not in first.metrics


KINDS = ("admin", "games", "net", "text")
STREAM = {label: i // 2 + 1 for i, label in enumerate(KINDS)}
"""two classes an experience: one alone has nothing to be told from"""


def head_rows(done: Finished) -> list[dict[str, Tensor]]:
    """By version: the row of each label, its bias beside it."""
    found = []
    for version in done.versions:
        saved = of_part(version, None)
        (weight,) = [t for name, t in saved.items() if name.endswith("classifier.weight")]
        (bias,) = [t for name, t in saved.items() if name.endswith("classifier.bias")]
        rows = torch.cat([weight, bias[:, None]], dim=1)
        found.append(dict(zip(KINDS, rows, strict=True)))
    return found


@pytest.mark.parametrize("compete", [False, True])
async def test_a_class_that_joins_leaves_the_heads_older_rows_as_they_were_through_all_rounds(
    compete: bool, tmp_path: Path, bert: Path
):
    # The second worker has no example of the classes that join.
    stream = ContinualSpec(
        order=KINDS, sizes=(2, 2), rounds_per_experience=2, compete_with_earlier=compete
    )
    rows = [
        {"text": f"{label} {TEXTS[i % 5]}", "label": label, "split": "test" if i > 19 else "train"}
        for i, label in enumerate(KINDS * 6)
    ]
    without = [r for r in rows if STREAM[r["label"]] == 1 or r["split"] == "test"]
    spec = run_of(classifier_spec(bert, labels=KINDS), "fed_talora", num_rounds=4, local_steps=2)
    done = await federate(
        tmp_path, replace(spec, continual=stream), rows={"w-0": rows, "w-1": without}
    )
    head = head_rows(done)
    for round in range(1, 5):
        newest = (round + 1) // 2
        for label, before in head[round - 1].items():
            moved = not torch.equal(before, head[round][label])
            assert moved == (STREAM[label] == newest or (compete and STREAM[label] < newest))
    trained = [[u.num_examples > 0 for u in report.updates] for report in done.reports]
    assert trained == [[True, True]] * 2 + [[True, False]] * 2
