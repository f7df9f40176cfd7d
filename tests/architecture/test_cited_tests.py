"""A test that a docstring or a page names is there: whoever doubts a claim can go and read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("fedlora", "aggregator_service", "client_worker", "fedlora_cli", "benchmarks")
PAGES = (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("benchmarks/*.md"))
EXAMPLES = {"test_my_method.py"}
"""what a page tells its reader to write"""

CITED = re.compile(r"[\w./-]*\btest_\w+\.py")
FILES = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}


def missing(text: str) -> list[str]:
    """The test files that a text names and nobody finds."""
    return [
        name
        for name in CITED.findall(text)
        if Path(name).name not in EXAMPLES
        and not any(f"/{file}".endswith(f"/{name.lstrip('./')}") for file in FILES)
    ]


def files() -> Iterator[Path]:
    for source in SOURCES:
        yield from (ROOT / source).rglob("*.py")
    yield from PAGES


def test_every_test_that_is_named_exists():
    found = {
        path.relative_to(ROOT).as_posix(): names
        for path in files()
        if (names := missing(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("held by test_fedit.py, twice", []),
        ("tests/laws/test_aggregator_laws.py:", []),
        ("(test_fedawa_method.py)", ["test_fedawa_method.py"]),
        ("`tests/unit/test_aggregator_laws.py`", ["tests/unit/test_aggregator_laws.py"]),
        ("mytest_fedit.py", []),
    ],
)
def test_what_is_not_there_is_found(text, names):
    assert missing(text) == names


def test_there_is_something_to_look_at():
    texts = [path.read_text(encoding="utf-8") for path in files()]
    assert sum(len(CITED.findall(text)) for text in texts) > 100
