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


def test_a_cell_that_fails_is_told_and_tried_again_while_the_others_are_kept(study):
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
    (study / "study" / "README.md").unlink()
    start(study, "--page-only").communicate(timeout=60)
    assert (study / "study" / "README.md").read_text() == page
    listed, _ = start(study, "--dry-run").communicate(timeout=60)
    assert [line.split()[0] for line in listed.splitlines()] == ["done", "to"]


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
