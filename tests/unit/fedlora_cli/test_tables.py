"""Figures of rounds as people read them."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console
from support.sample_run import sample_round, sample_run

from fedlora_cli.tables import round_cells, round_line, rounds_table, runs_table


def rendered(table) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_round_has_scores_errors_traffic_and_time():
    report = sample_round(2)
    assert round_cells(report) == [
        "2",
        f"{100 * report.metrics['test_accuracy']:.1f}%",
        f"{100 * report.metrics['held_out_accuracy']:.1f}%",
        "–",
        f"{100 * report.metrics['local_accuracy']:.1f}%",
        "4.0%",
        "5.5%",
        "16.0%",
        "3.0%",
        "6.0",
        "12.0",
        "15.0",
    ]


def test_what_was_not_measured_is_a_dash():
    bare = replace(sample_round(1, certified=False), metrics={})
    assert round_cells(bare)[1:9] == ["–"] * 8
    assert "–" not in round_line(bare)


def test_a_loss_is_no_percentage():
    cells = round_cells(sample_round(1, metric="loss"))
    assert cells[1] == f"{sample_round(1, metric='loss').metrics['test_loss']:.3f}"


def test_small_errors_and_small_payloads_keep_a_digit():
    report = sample_round(1)
    overall = replace(report.certificate.overall, relative_error_vs_change=1e-5)
    report = replace(
        report,
        bytes_up=50_000,
        certificate=replace(report.certificate, overall=overall),
    )
    assert round_cells(report)[6] == "0.001%"
    assert round_cells(report)[9] == "0.05"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_figures_that_are_no_numbers_are_dashes(value):
    report = sample_round(1)
    assert round_cells(replace(report, metrics={"test_accuracy": value}))[1] == "–"


def test_the_table_fits_eighty_columns_and_explains_itself():
    console = Console(width=80)
    table = rounds_table([sample_round(i) for i in range(1, 7)])
    assert table.__rich_measure__(console, console.options).minimum <= 80
    assert "least possible" in rendered(table)


def test_personal_scores_have_a_column_where_a_run_has_them():
    bare, report = sample_round(1), sample_round(2)
    assert "personal" not in rendered(rounds_table([bare, report]))
    report = replace(report, metrics={**report.metrics, "personal_accuracy": 0.777})
    lines = rendered(rounds_table([bare, report])).splitlines()
    column = lines[0].split().index("personal")
    assert [line.split()[column] for line in lines[1:3]] == ["–", "77.7%"]
    assert "personal 77.7%" in round_line(report)


def test_runs_are_listed_with_phase_round_and_workers():
    line = rendered(runs_table([sample_run()])).splitlines()[1]
    assert line.split()[:4] == ["sample", "completed", "6/6", "4/4"]
