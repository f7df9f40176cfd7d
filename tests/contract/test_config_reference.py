"""docs/configuration.md is what the dataclasses say, and the examples are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlora.config import reference_markdown
from fedlora.config.sections import all_sections
from fedlora_cli.configuration import load, section_types
from fedlora_cli.local_federation import check_workers

ROOT = Path(__file__).parents[2]


def test_the_page_is_current():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference_markdown(section_types()), (
        "run `fedlora config reference > docs/configuration.md`"
    )


def test_every_key_has_a_help_text():
    missing = [
        f"{section.name}.{key.name}"
        for section in all_sections(section_types())
        for key in section.keys
        if not key.help
    ]
    assert missing == []


@pytest.mark.parametrize("name", ["quickstart", "causal_lm"])
def test_the_example_describes_a_run_that_can_begin(name):
    config = load(ROOT / "examples" / f"{name}.toml", environ={})
    check_workers(config)
    assert Path(config.section("data")["path"]).is_absolute()
    assert Path(config.section("data")["path"]).parent == ROOT / "examples" / "data"
