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


def aimed(*targets):
    spec = run(CONTINUE, ())
    return replace(spec, adapter=replace(spec.adapter, target_modules=targets))


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("all-linear",), (".*(q|v)_proj",), ("layers.0.q_proj",)]
)
def test_names_or_one_expression_are_taken(targets):
    check_task(aimed(*targets))


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        (("*attn",), r"'\*attn' is no regular expression: nothing to repeat"),
        (("q_proj", ".*dense"), r"expected '\.\*dense' alone or names only, got 2 entries"),
        (("all-linear", "score"), "expected 'all-linear' alone"),
    ],
)
def test_what_peft_would_take_for_the_name_of_nothing_is_refused(targets, named):
    with pytest.raises(FedLoraError, match=named) as caught:
        check_task(aimed(*targets))
    assert caught.value.reason is Reason.INVALID_CONFIG
