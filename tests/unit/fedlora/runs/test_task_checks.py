from __future__ import annotations

from dataclasses import replace

import pytest
from support.runs import run_spec

from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.task_checks import check_task
from fedlora.runs.training import TrainingSpec

CLASSIFY, CONTINUE = TaskType.SEQUENCE_CLASSIFICATION, TaskType.CAUSAL_LM


def run(task, labels, **training):
    spec = run_spec()
    adapter = replace(spec.adapter, task_type=task, labels=labels)
    return replace(spec, adapter=adapter, training=TrainingSpec(**training))


@pytest.mark.parametrize(
    ("task", "labels", "training"),
    [
        (CONTINUE, (), {"packing": True}),
        (CLASSIFY, ("a", "b"), {"logit_adjustment": 1.0}),
    ],
)
def test_labels_and_training_of_the_runs_task_are_taken(task, labels, training):
    check_task(run(task, labels, **training))


@pytest.mark.parametrize(
    ("task", "labels", "training", "named"),
    [
        (CLASSIFY, (), {}, r"model\.labels"),
        (CLASSIFY, ("one",), {}, r"model\.labels"),
        (CLASSIFY, ("a", "b", "a"), {}, r"model\.labels"),
        (CLASSIFY, ("a", "b"), {"packing": True}, r"training\.packing"),
        (CONTINUE, (), {"logit_adjustment": 0.5}, r"training\.logit_adjustment"),
    ],
)
def test_those_of_another_are_refused(task, labels, training, named):
    with pytest.raises(FedLoraError, match=named) as caught:
        check_task(run(task, labels, **training))
    assert caught.value.reason is Reason.INVALID_CONFIG
