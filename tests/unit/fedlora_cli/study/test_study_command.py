"""`fedlora study` with real cells: a part fails, it is stopped, it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.tiny_run import write_tiny_run
from typer.testing import CliRunner, Result

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.app import app
from fedlora_cli.study.cells import Cell, cells_of
from fedlora_cli.study.design import read_study
from fedlora_cli.study.results import CellResult, Results

pytestmark = pytest.mark.timeout(300)

STUDY = """
[study]
name = "tiny"
title = "One works"
config = "tiny.toml"
seeds = [0]
baseline = "fedit"
metrics = ["test_accuracy"]
[settings]
rounds.num_rounds = 1
[variants]
fedit.method.name = "fedit"
broken.adapter.target_modules = ["no_such_module"]
"""

FIGURES = {"bytes_up": 1e6, "bytes_down": 1e6}


@pytest.fixture
def study(tmp_path):
    write_tiny_run(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fedlora_cli", "study", "study.toml", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[4])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result_of_hand(cell: Cell) -> CellResult:
    rounds = ({**FIGURES, "test_accuracy": 0.5 + cell.seed / 10},)
    return CellResult(
        key=cell.key, label=cell.label, rounds=rounds, seconds=1.0, train_seconds=0.8,
        made_with="by hand",
    )  # fmt: skip


def again(*arguments: str) -> Result:
    """The command in this process, from the working directory."""
    return CliRunner().invoke(app, ["study", "study.toml", *arguments], catch_exceptions=False)


def test_a_cell_that_fails_is_told_and_tried_again_while_the_others_are_kept(study, monkeypatch):
    process = start(study, "--jobs", "2")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 7, err
    assert "fedit, seed 0: test_accuracy" in out
    assert "broken, seed 0" in err
    assert "ended with code 1" in err
    page = (study / "study" / "README.md").read_text()
    assert "1 of 2 cells" in page
    assert "| `fedit` | 1 |" in page
    lines = (study / "study" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["fedit, seed 0"]
    kept = next((study / "runs/studies/tiny").glob("fedit-*"))
    assert (kept / "report.html").is_file()
    assert (kept / "final" / "adapter_config.json").is_file()
    monkeypatch.chdir(study)
    (study / "study" / "README.md").unlink()
    assert again("--page-only").exit_code == 0
    assert (study / "study" / "README.md").read_text() == page
    listed = again("--dry-run").stdout
    assert [line.split()[0] for line in listed.splitlines()] == ["done", "to"]
    # The same command, without what failed: everything is there, and nothing is touched.
    before = {file: file.stat().st_mtime_ns for file in kept.rglob("*")}
    results = study / "study" / "results.jsonl"
    written = results.stat().st_mtime_ns
    done = again("--only", "fedit")
    assert done.exit_code == 0
    assert "results  1 of 2 cells" in done.stdout
    assert {file: file.stat().st_mtime_ns for file in kept.rglob("*")} == before
    assert results.stat().st_mtime_ns == written
    assert (study / "study" / "README.md").read_text() == page


def test_a_whole_study_that_is_begun_again_runs_no_cell_and_writes_the_same_page(
    study, monkeypatch
):
    monkeypatch.chdir(study)
    # What the cells came to is written, not computed: whoever ran one would need a folder for it.
    (study / "study.toml").write_text(STUDY.replace("seeds = [0]", "seeds = [0, 1]"))
    results = Results(study / "study" / "results.jsonl")
    (study / "study").mkdir()
    for cell in cells_of(read_study(study / "study.toml")):
        results.add(result_of_hand(cell))
    kept = (study / "study" / "results.jsonl").read_bytes()
    pages = []
    for _ in range(2):
        done = again()
        assert done.exit_code == 0
        assert "results  4 of 4 cells" in done.stdout
        pages.append((study / "study" / "README.md").read_bytes())
    assert pages[0] == pages[1]
    assert b"by hand" in pages[0]
    assert (study / "study" / "results.jsonl").read_bytes() == kept
    assert not (study / "runs").exists()


def test_two_commands_never_run_cells_for_the_same_results(study, monkeypatch):
    """Each would write the file without what the other one has added."""
    monkeypatch.chdir(study)
    (study / "study").mkdir()
    file = study / "study" / "results.jsonl"
    early, late = Results(file), Results(file)
    (cell, _) = cells_of(read_study(study / "study.toml"))
    with early.held():
        with pytest.raises(FedLoraError, match="another `fedlora study`") as caught:
            again("--only", "broken")
        # Whoever only looks is no writer.
        assert again("--dry-run").exit_code == 0
        early.add(result_of_hand(cell))
    assert caught.value.reason is Reason.STATE_LOCKED
    with late.held():
        assert late.find(cell) is not None


def test_stopped_it_leaves_no_process_and_no_half_cell(study):
    process = start(study, "--jobs", "1", "--only", "fedit")
    cells = study / "runs/studies/tiny"
    deadline = time.monotonic() + 60
    while not list(cells.glob("fedit-*/logs/cell.log")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert not list(cells.iterdir())
    assert not (study / "study" / "results.jsonl").exists()


def test_an_unknown_variant_is_named(study):
    process = start(study, "--only", "fedavg")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "expected one of broken, fedit" in err
