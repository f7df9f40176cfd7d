"""docs/cli.md names every command, every option of its own and every exit code."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
import typer.main

from fedlora.config.keys import field_help
from fedlora.exit_codes import ExitCode
from fedlora_cli.app import app

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()

# `aggregate` and `methods` are told in docs/algorithms.md and by --help.
ELSEWHERE = {"aggregate", "methods"}


def commands() -> dict[str, object]:
    group = typer.main.get_command(app)
    found: dict[str, object] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= {f"{name} {inner}": c for inner, c in command.commands.items()}
        else:
            found[name] = command
    return found


def options(command) -> set[str]:
    names = {opt for p in command.params for opt in getattr(p, "opts", ())}
    return {name for name in names if name.startswith("--")} - {"--help"}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_is_documented_and_has_help(name):
    assert f"fedlora {name}" in PAGE
    assert commands()[name].help


@pytest.mark.parametrize("name", sorted(set(commands()) - ELSEWHERE))
def test_every_option_is_documented(name):
    assert {option for option in options(commands()[name]) if option not in PAGE} == set()


@pytest.mark.parametrize("code", list(ExitCode))
def test_the_table_of_exit_codes_is_the_enumeration(code):
    meaning = field_help_of_exit_codes()[code.name]
    assert f"| {int(code)} | {code.name} | {meaning} |" in PAGE


def test_the_page_names_no_exit_code_that_is_not_there():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert len(rows) == len(ExitCode)


def field_help_of_exit_codes() -> dict[str, str]:
    import ast
    import inspect
    import itertools
    import textwrap

    body = ast.parse(textwrap.dedent(inspect.getsource(ExitCode))).body[0].body
    return {
        a.targets[0].id: " ".join(b.value.value.split())
        for a, b in itertools.pairwise(body)
        if isinstance(a, ast.Assign) and isinstance(b, ast.Expr)
    }


def test_config_keys_of_flags_are_documented_fields():
    # A guard for the guard: field docstrings are really read.
    from fedlora.runs.rounds import RoundRules

    assert field_help(RoundRules)["num_rounds"] == "rounds of the run"
