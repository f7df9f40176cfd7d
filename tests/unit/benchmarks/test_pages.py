"""Pages whose sections are measured one at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
TITLES = ("First", "Second", "Third")


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_sections_that_are_not_measured_now_stay_as_they_are(tmp_path: Path):
    from shared.pages import write_page

    page = tmp_path / "page.md"
    write_page(page, ["# Page"], TITLES, {"First": ["## First", "", "| 1 |"]})
    write_page(page, ["# Page"], TITLES, {"Third": ["## Third", "", "| 3 |", ""]})
    write_page(page, ["# Page, again"], TITLES, {"Second": ["## Second", "", "| 2 |"]})
    assert page.read_text() == (
        "# Page, again\n\n## First\n\n| 1 |\n\n## Second\n\n| 2 |\n\n## Third\n\n| 3 |\n"
    )


def test_a_section_that_is_measured_again_is_replaced(tmp_path: Path):
    from shared.pages import write_page

    page = tmp_path / "page.md"
    write_page(page, ["# Page"], TITLES, {"First": ["## First", "", "| 1 |"]})
    write_page(page, ["# Page"], TITLES, {"First": ["## First", "", "| 2 |"]})
    assert page.read_text() == "# Page\n\n## First\n\n| 2 |\n"


def test_every_section_of_the_transport_benchmark_is_measured():
    import transport

    page = (BENCHMARKS / "transport.md").read_text(encoding="utf-8")
    headings = [line[3:] for line in page.splitlines() if line.startswith("## ")]
    assert headings == list(transport.TITLES.values())
