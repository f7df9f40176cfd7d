"""Which names of metrics a study is refused for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedlora.adapters.spec import TaskType
from fedlora.runs.score_names import judged_scores
from fedlora_cli.study.metric_names import misspelt

RESULTS = sorted((Path(__file__).parents[4] / "benchmarks/studies").glob("*/results.jsonl"))


@pytest.mark.parametrize("task", TaskType)
def test_the_scores_of_every_task_are_known(task):
    for name in judged_scores(task):
        assert not misspelt(name)
        assert not misspelt(f"mean_{name}")


def test_whatever_cells_have_measured_may_be_asked_for():
    lines = [line for file in RESULTS for line in file.read_text().splitlines()]
    names = {name for line in lines for figures in json.loads(line)["rounds"] for name in figures}
    assert "truncation_error_rank_16" in names, "what a method measures is there"
    assert {name: meant for name in names if (meant := misspelt(name))} == {}


def test_experiences_are_known_by_any_number():
    assert not misspelt("test_experience_12_accuracy")
    assert misspelt("test_experience_12_acuracy") == "test_accuracy"


@pytest.mark.parametrize("own", ["lower_bound", "cosine_spread", "mean_norm", "localness"])
def test_a_name_like_no_other_may_be_a_methods_own(own):
    assert misspelt(own) == ""


@pytest.mark.parametrize(
    ("metric", "meant"),
    [
        ("test_acc", "test_accuracy"),
        ("held_out_accuracy_worst_tent", "held_out_accuracy_worst_tenth"),
        ("mean_relative_error_vs_chang", "relative_error_vs_change"),
        ("local_global_gp", "local_global_gap"),
    ],
)
def test_a_score_that_there_is_not_and_what_is_nearly_a_figure_are_refused(metric, meant):
    assert misspelt(metric) == meant
