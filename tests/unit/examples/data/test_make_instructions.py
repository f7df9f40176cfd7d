from __future__ import annotations

import json
import runpy
from collections import Counter
from pathlib import Path

DATA = Path(__file__).resolve().parents[4] / "examples" / "data"


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def test_the_committed_file_is_what_the_script_makes():
    made = runpy.run_path(str(DATA / "make_instructions.py"))["instructions"]()
    assert made == (DATA / "instructions.jsonl").read_text(encoding="utf-8")


def test_the_figures_of_the_readme_are_those_of_the_files():
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    sections, questions = rows("debian_sections.jsonl"), rows("instructions.jsonl")
    split = Counter(row["split"] for row in sections)
    teams = len({row["team"] for row in sections})
    for number in (len(sections), teams, split["train"], split["test"], len(questions)):
        assert f"{number:,}" in readme


def test_every_section_has_the_same_number_of_questions():
    counts = Counter((row["split"], row["label"]) for row in rows("instructions.jsonl"))
    assert len(counts) == 2 * 14
    assert {split: {n for (s, _), n in counts.items() if s == split} for split, _ in counts} == {
        "train": {60},
        "test": {10},
    }
