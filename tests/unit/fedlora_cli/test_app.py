"""The command itself: version, errors, exit codes, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedlora

ROOT = Path(__file__).parents[3]


def fedlora_command(
    *arguments: str, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from fedlora_cli.app import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "COLUMNS": "100", **environment},
        timeout=120,
    )


def test_version():
    done = fedlora_command("--version")
    assert (done.returncode, done.stdout) == (0, f"fedlora {fedlora.__version__}\n")


def test_a_configuration_is_shown_as_it_is_whatever_its_brackets_and_the_terminals_encoding(
    tmp_path,
):
    file = tmp_path / "one[b].toml"
    file.write_text((ROOT / "examples" / "causal_lm.toml").read_text())
    expression = r"adapter.target_modules=['.*\[a-z]']"
    done = fedlora_command(
        "config", "check", str(file), "--set", expression, "--set", "data.text_column=zażółć",
        PYTHONIOENCODING="ascii", PYTHONUTF8="0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert r'[".*\\[a-z]"]' in done.stdout
    assert "one[b].toml" in done.stdout
    assert "za????" in done.stdout


def test_help_needs_neither_torch_nor_grpc_nor_a_service():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from fedlora_cli.app import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'grpc', 'transformers', 'aggregator_service', 'client_worker'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "import torch\n"
        "assert heavy & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "none.toml"], 2, ["INVALID_CONFIG", "none.toml"]),
        (
            ["config", "check", "examples/quickstart.toml", "--set", "rounds.num_round=1"],
            2,
            ["num_round", "Did you mean 'num_rounds'?"],
        ),
        (
            ["config", "check", "examples/quickstart.toml", "--set", "method.name=fedti"],
            2,
            ["UNSUPPORTED_METHOD", "fedit"],
        ),
        (
            ["config", "check", "examples/quickstart.toml", "--set", "plugins.fedprux.mu=1"],
            2,
            ["there is no plug-in 'fedprux'", "Did you mean 'fedprox'?"],
        ),
        (
            ["config", "check", "examples/quickstart.toml", "--set", "plugins.scaffold.mode=exact"],
            2,
            ["UNSUPPORTED_METHOD", "plug-in scaffold"],
        ),
        (
            ["run", "examples/quickstart.toml", "--set", "workers.count=2"],
            2,
            ["workers.count is 2", "rounds.min_workers"],
        ),
        (["runs", "--server", "127.0.0.1:1"], 4, ["UNAVAILABLE", "127.0.0.1:1"]),
        (["report", "examples"], 2, ["NOT_FOUND", "no run directory"]),
        (["worker", "examples/quickstart.toml", "--device", "cuda:99"], 6, ["cuda:99"]),
        (["nonsense"], 2, ["No such command"]),
    ],
)
def test_a_users_mistake_is_one_message_and_a_code(arguments, code, words):
    done = fedlora_command(*arguments)
    assert done.returncode == code, done.stderr
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_check_shows_where_a_value_comes_from():
    done = fedlora_command(
        "config", "check", "examples/quickstart.toml", "--set", "rounds.num_rounds=3"
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if "num_rounds" in x)
    assert line.split() == ["num_rounds", "3", "--set"]
