"""The models of a configuration's sections: made once, whatever the keys' defaults are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fedlora.config.checks import section_models
from fedlora.config.keys import keys_of
from fedlora.config.sections import Section


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A plug-in's settings, one of which begins as an empty list."""

    names: Any = field(default_factory=list)
    count: int = 3


def sections(**changes: object) -> tuple[Section, ...]:
    return (Section(name="listing", help="", keys=keys_of(Listing), **changes),)


def test_models_are_made_once_for_equal_sections():
    models = section_models(sections())
    assert section_models(sections()) is models
    assert models["listing"](names=["a"]).model_dump() == {"names": ["a"], "count": 3}


def test_sections_that_differ_have_models_of_their_own():
    closed, opened = section_models(sections()), section_models(sections(open=True))
    assert closed["listing"].model_config["extra"] == "forbid"
    assert opened["listing"].model_config["extra"] == "allow"
