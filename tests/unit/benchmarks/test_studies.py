"""The committed studies: files that run, results that are theirs, pages that say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedlora_cli.study.cells import cells_of
from fedlora_cli.study.design import read_study
from fedlora_cli.study.page import write_page
from fedlora_cli.study.results import Results

ROOT = Path(__file__).parents[3]
STUDIES = sorted((ROOT / "benchmarks/studies").glob("*.toml"))
_MOST_CELLS = 100
_FEWEST_SEEDS = 5


def test_there_are_studies():
    assert STUDIES


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_a_study_can_be_run_and_its_results_are_of_its_cells(file, tmp_path):
    study = read_study(file)
    cells = cells_of(study)
    assert study.name == file.stem
    assert len(cells) <= _MOST_CELLS
    assert len(study.seeds) >= _FEWEST_SEEDS
    folder = file.with_suffix("")
    if not folder.is_dir():
        return
    results = Results(folder / "results.jsonl")
    found = [result for cell in cells if (result := results.find(cell)) is not None]
    lines = (folder / "results.jsonl").read_text().splitlines()
    assert len({result.key for result in found}) == len(lines), "a line that is of no cell"
    command = f"fedlora study {file.relative_to(ROOT)}"
    page = write_page(study, cells, results, tmp_path, command=command)
    assert (folder / "README.md").read_text() == page.read_text()
    assert (folder / "rounds.svg").read_text() == (tmp_path / "rounds.svg").read_text()


def test_the_page_of_sensitivities_is_of_the_committed_results(tmp_path):
    script, page = ROOT / "benchmarks/sensitivity.py", tmp_path / "sensitivity.md"
    subprocess.run([sys.executable, script, "--out", page], check=True)
    assert page.read_text() == script.with_suffix(".md").read_text()
