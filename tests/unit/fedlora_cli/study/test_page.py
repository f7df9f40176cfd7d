"""The page: figures worked by hand, and a study of which only a part has been run."""

from __future__ import annotations

import pytest

from fedlora_cli.study.cells import Cell
from fedlora_cli.study.design import Condition, Study
from fedlora_cli.study.page import write_page
from fedlora_cli.study.results import CellResult, Results

CONDITIONS = (
    Condition(variant="fedit", varied={}, settings={}),
    Condition(variant="new", varied={}, settings={"a.b": 1}),
    Condition(variant="new", varied={"clients": 20}, settings={"a.b": 1}),
)


def cell(condition: int, seed: int) -> Cell:
    return Cell(
        condition=CONDITIONS[condition],
        seed=seed,
        key=f"{condition}-{seed}",
        overrides=(),
        num_rounds=2,
    )


def result(of: Cell, *accuracies: float, loss: float = 1.0) -> CellResult:
    rounds = tuple(
        {"test_accuracy": a, "loss": loss, "bytes_up": 2e6, "bytes_down": 1e6} for a in accuracies
    )
    return CellResult(
        key=of.key, label=of.label, rounds=rounds, seconds=10, train_seconds=8, made_with="x 1"
    )


@pytest.fixture
def study(tmp_path):
    return Study(
        name="s",
        title="Is new better?",
        question="Is it?",
        config=tmp_path,
        seeds=(0, 1, 2),
        baseline="fedit",
        metrics=("test_accuracy", "loss"),
        reach_metric="test_accuracy",
        reach_levels=(0.55,),
        conditions=CONDITIONS,
    )


def page(study, tmp_path, *results):
    kept = Results(tmp_path / "results.jsonl")
    for one in results:
        kept.add(one)
    cells = [cell(c, s) for s in study.seeds for c in range(len(CONDITIONS))]
    # Read back: what is in the file is all that the page is made of.
    again = Results(tmp_path / "results.jsonl")
    return write_page(study, cells, again, tmp_path, command="fedlora study s.toml").read_text()


def test_means_differences_and_bytes_are_those_worked_by_hand(study, tmp_path):
    text = page(
        study,
        tmp_path,
        *(result(cell(0, s), 0.4, 0.5 + 0.1 * s) for s in range(3)),
        *(result(cell(1, s), 0.6, 0.51 + 0.1 * s + 0.01 * s, loss=2.0) for s in range(3)),
    )
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "| `" in line}
    # Of 0.5, 0.6, 0.7: mean 0.6, deviation 0.1. The level 0.55 is reached by two seeds, after 6 MB.
    assert rows["`fedit`"] == (
        "| `fedit` | 3 | 60.0 % ± 10.0 |  |  | 1 ± 0 | 2.00 | 1.00 | 6.0 (2/3 seeds) |"
    )
    # Differences 0.01, 0.02, 0.03: mean 0.02, deviation 0.01, t = 0.02 / (0.01 / sqrt 3) = 3.464 of
    # two degrees of freedom, p 0.074; half the interval 4.303 * 0.01 / sqrt 3 = 0.0248.
    assert rows["`new`"] == (
        "| `new` | 3 | 62.0 % ± 11.0 | +2.0 [-0.5, +4.5] | 0.074 | 2 ± 0 | 2.00 | 1.00 | 3.0 |"
    )
    assert "6 of 9 cells, 10 s each on average, 80% of them" in text
    assert "clients = 20" not in text
    drawing = (tmp_path / "rounds.svg").read_text()
    assert drawing.count("<polyline") == 2


def test_equal_differences_have_neither_interval_nor_p(study, tmp_path):
    text = page(
        study,
        tmp_path,
        *(result(cell(0, s), 0.5 + 0.1 * s) for s in range(2)),
        *(result(cell(1, s), 0.52 + 0.1 * s) for s in range(2)),
    )
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if "| `" in line}
    assert [word.strip() for word in rows["`new`"].split("|")[4:6]] == ["+2.0", "–"]
    assert "without a spread there is no test" in text


def test_a_figure_is_of_the_last_round_or_of_all():
    found = result(cell(0, 0), 0.25, 0.75)
    assert found.value("test_accuracy") == 0.75
    assert found.value("mean_test_accuracy") == 0.5
    assert found.value("no_such") is found.value("mean_no_such") is None


def test_a_study_of_which_nothing_was_run_says_so(study, tmp_path):
    text = page(study, tmp_path)
    assert "None of the 9 cells has been run." in text
    assert "| variant |" not in text


def test_results_of_the_same_cells_are_the_same_file_in_any_order(study, tmp_path):
    found = [result(cell(0, s), 0.4, 0.5) for s in range(3)]
    texts = []
    for name, order in (("a", found), ("b", found[::-1])):
        file = tmp_path / name
        for one in order:
            Results(file).add(one)
        texts.append(file.read_bytes())
    assert texts[0] == texts[1]


def test_a_line_that_is_no_result_is_named(tmp_path):
    file = tmp_path / "results.jsonl"
    file.write_text('{"key": "k"}\n')
    with pytest.raises(Exception, match=r"results\.jsonl, line 1: no result of a cell"):
        Results(file)


def test_one_seed_has_no_spread(study, tmp_path):
    text = page(study, tmp_path, result(cell(0, 0), 0.4, 0.5))
    (row,) = (line for line in text.splitlines() if "| `fedit`" in line)
    assert "| 50.0 % |" in row
    assert "±" not in row
