"""`fedlora methods` and the page it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from aggregator_service.aggregation.registry import METHODS
from fedlora.errors import FedLoraError
from fedlora.runs.method import Gauge
from fedlora.runs.options import options
from fedlora_cli.algorithms_page import markdown
from fedlora_cli.commands.methods import methods

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments):
    app = typer.Typer()
    app.command()(methods)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_page_in_docs_is_the_one_the_code_writes():
    assert (ROOT / "docs" / "algorithms.md").read_text() == markdown(), "run `make docs`"


def test_the_page_names_every_method_option_source_and_test_file():
    page = run("--markdown")
    for name, row in METHODS.items():
        assert f"## {name}\n" in page
        assert row.about.paper in page
        assert all(f"| `{option.name}` |" in page for option in options(type(row)))
        source = type(row).__module__.replace(".", "/") + ".py"
        test = f"tests/unit/aggregator_service/aggregation/methods/test_{name}.py"
        assert source in page
        assert test in page
        assert (ROOT / source).is_file()
        assert (ROOT / test).is_file()


def test_json_lists_methods_with_their_options():
    records = {record["name"]: record for record in json.loads(run("--json"))["methods"]}
    assert records.keys() == METHODS.keys()
    assert records["fedit"]["mixed_ranks"] is False
    core = records["optimal"]["options"][0]
    assert core["default"] == "auto"
    assert "randomised" in core["choices"]
    assert records["optimal"]["gauges"] == [*Gauge]
    assert records["ffa_lora"]["gauges"] == ["own"]
    assert all(option["help"] for record in records.values() for option in record["options"])


@pytest.fixture(scope="module")
def table():
    return run()


def test_the_table_says_where_the_rest_is(table):
    assert "traffic, cost, needs and options: fedlora methods NAME" in " ".join(table.split())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_table_shows_every_method(name, table):
    assert name in table


@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_method_is_told_whole(name):
    shown = " ".join(run(name).split())
    (record,) = json.loads(run(name, "--json"))["methods"]
    for fact in ("paper", "exactness", "up", "down", "cost", "needs", "choose"):
        assert str(record[fact]) in shown, fact
    assert all(f"option {option['name']} " in shown for option in record["options"])


def test_a_name_that_nobody_has_is_answered_with_the_nearest():
    with pytest.raises(FedLoraError, match="no aggregation method 'fedlora_optimiser'") as caught:
        methods("fedlora_optimiser")
    assert "'fedlora_optimizer'" in caught.value.hint


def test_traffic_names_the_options_that_change_it():
    shown = " ".join(run("fedlora_optimizer").split())
    assert "sent up r(d+k); global_stage = federated: r(d+k), then rk" in shown
    assert "sent up rd; trained = a: rk" in " ".join(run("rac_lora").split())
    assert "restart = true: r(d+k) + min(tR, d, k)(d+k)" in " ".join(run("florist").split())
