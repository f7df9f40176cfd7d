from __future__ import annotations

from dataclasses import replace

import pytest

from fedlora.adapters.spec import AdapterSpec, BaseModel, TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.rounds import FinalVersion, RoundRules
from fedlora.runs.spec import RunSpec

STREAM = ContinualSpec(order=("c", "a", "d", "b"), sizes=(2, 1, 1), rounds_per_experience=2)

LANGUAGE_MODEL = AdapterSpec(
    base_model=BaseModel(model_id="m"), task_type=TaskType.CAUSAL_LM, target_modules=("q",)
)

RUN = RunSpec(
    name="stream",
    adapter=AdapterSpec(
        base_model=BaseModel(model_id="m"),
        target_modules=("q",),
        task_type=TaskType.SEQUENCE_CLASSIFICATION,
        labels=("a", "b", "c", "d"),
    ),
    rounds=RoundRules(num_rounds=6),
)


def test_experiences_join_one_after_the_other_and_the_last_one_stays():
    assert [STREAM.newest(r) for r in range(8)] == [1, 1, 1, 2, 2, 3, 3, 3]
    assert [STREAM.joins_in_round(e) for e in (1, 2, 3)] == [1, 3, 5]
    assert [list(STREAM.trained(r)) for r in (1, 3, 5)] == [[1], [2], [3]]
    assert [list(STREAM.joined(r)) for r in (1, 3, 5)] == [[1], [1, 2], [1, 2, 3]]


def test_what_joined_earlier_may_stay():
    keeping = replace(STREAM, keep_earlier=True)
    assert [list(keeping.trained(r)) for r in (1, 3, 5)] == [[1], [1, 2], [1, 2, 3]]


def test_values_join_in_their_order():
    assert [STREAM.values(e) for e in (1, 2, 3)] == [("c", "a"), ("d",), ("b",)]
    assert STREAM.experience_of() == {"c": 1, "a": 1, "d": 2, "b": 3}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"order": ("a", "a", "b", "c")}, "list each value once"),
        ({"order": ("a", "", "b", "c")}, "none of them empty"),
        ({"sizes": (2, 1)}, r"add up to the 4 values of continual.order, got \[2, 1\]"),
        ({"sizes": (4, 0)}, "numbers from 1"),
        ({"sizes": ()}, "numbers from 1"),
        ({"rounds_per_experience": 0}, "at least 1, got 0"),
    ],
)
def test_a_stream_that_cannot_be_is_refused(changes, named):
    with pytest.raises(FedLoraError, match=named) as refused:
        replace(STREAM, **changes)
    assert refused.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("stream", "run", "named"),
    [
        ({"order": ("a", "b", "c", "e")}, {}, r"differs in \['d', 'e'\]"),
        ({}, {"rounds": RoundRules(num_rounds=4)}, "would join in round 5"),
        (
            {},
            {"rounds": RoundRules(num_rounds=6, best_by="test_loss", early_stopping_rounds=1)},
            "early_stopping_rounds",
        ),
        (
            {},
            {
                "rounds": RoundRules(
                    num_rounds=6, best_by="test_loss", final_version=FinalVersion.BEST
                )
            },
            "final_version",
        ),
        (
            {},
            {"adapter": LANGUAGE_MODEL},
            "causal_lm has none",
        ),
    ],
)
def test_a_run_that_a_stream_does_not_go_with_is_refused(stream, run, named):
    with pytest.raises(FedLoraError, match=named):
        replace(RUN, continual=replace(STREAM, **stream), **run)


def test_texts_may_join_by_any_column():
    run = replace(
        RUN,
        adapter=LANGUAGE_MODEL,
        continual=replace(STREAM, column="language"),
    )
    assert run.continual is not None
    assert not run.continual.by_label
