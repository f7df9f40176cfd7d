"""The seeded bugs fit the code as it is, and the runner calls a survivor a survivor."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from mutants.mutant import Mutant
from mutants.mutants import MUTANTS
from mutants.run import is_of, judge, tree_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_a_mutant_changes_one_place_of_a_file_that_still_compiles(mutant: Mutant):
    text = (ROOT / mutant.file).read_text()
    changed = mutant.applied_to(text)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text)), "it changes no code"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_every_killer_is_a_test_that_exists(mutant: Mutant):
    assert 1 <= len(mutant.killers) <= 3
    for killer in mutant.killers:
        file, *_, name = killer.split("::")
        function = name.partition("[")[0]
        assert re.search(rf"^ *(async )?def {function}\(", (ROOT / file).read_text(), re.M), killer


def test_mutants_are_many_and_each_has_its_name_and_sentence():
    assert len(MUTANTS) >= 16
    assert len({m.name for m in MUTANTS}) == len({m.sentence for m in MUTANTS}) == len(MUTANTS)


def test_the_page_shows_every_mutant_as_killed():
    page = (ROOT / "docs" / "mutants.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (.+?) \|", page, re.M)[1:]
    assert rows == [(m.name, m.sentence) for m in MUTANTS]
    assert f"{len(MUTANTS)} mutants, {len(MUTANTS)} killed, 0 survived" in page


# --- the runner ------------------------------------------------------------------------------


def mutant_of(old: str, new: str, *killers: str) -> Mutant:
    return Mutant(name="m", sentence="s", file="thing.py", old=old, new=new, killers=killers)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "thing.py").write_text("# the answer\nANSWER = 42\n")
    (tmp_path / "test_thing.py").write_text(
        "from thing import ANSWER\n\n"
        "def test_the_answer():\n    assert ANSWER == 42\n\n"
        "def test_the_answer_is_positive():\n    assert ANSWER > 0\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "silent"),
    [
        ("# the answer", "# an answer", {"test_the_answer", "test_the_answer_is_positive"}),
        ("ANSWER = 42", "ANSWER = 41", {"test_the_answer_is_positive"}),
        ("ANSWER = 42", "ANSWER = -1", set()),
        ("ANSWER = 42", "QUESTION = 42", {"test_the_answer", "test_the_answer_is_positive"}),
    ],
    ids=["a comment", "one test fails", "both fail", "nothing can be imported"],
)
def test_a_bug_is_killed_when_every_killer_fails(tree: Path, old: str, new: str, silent: set[str]):
    killers = [f"test_thing.py::{n}" for n in ("test_the_answer", "test_the_answer_is_positive")]
    verdict = judge(mutant_of(old, new, *killers), tree, tree_of(tree))
    assert {k.partition("::")[2] for k in verdict.silent} == silent, verdict.output
    assert verdict.killed == (not silent)
    assert old in (tree / "thing.py").read_text(), "the tree itself stays as it is"


def test_a_bug_without_its_place_is_no_mutant(tree: Path):
    for old in ("no such text", "e"):
        with pytest.raises(ValueError, match=r"expected its text once in thing\.py"):
            judge(mutant_of(old, "x", "test_thing.py::test_the_answer"), tree, tree_of(tree))


def test_a_failure_of_one_test_is_not_taken_for_that_of_another():
    assert is_of("t.py::test_a - assert 1", "t.py::test_a")
    assert is_of("t.py::test_a[x y] - assert 1", "t.py::test_a")
    assert is_of("t.py::test_a[x y] - assert 1", "t.py::test_a[x y]")
    assert not is_of("t.py::test_a_b - assert 1", "t.py::test_a")
    assert not is_of("t.py::test_a[xy] - assert 1", "t.py::test_a[x]")
