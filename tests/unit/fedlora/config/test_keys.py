"""Keys are read off dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedlora.config.keys import REQUIRED, did_you_mean, keys_of, parse_literal
from fedlora.runs.rounds import BelowQuorum, RoundRules
from fedlora.runs.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Fields of every kind."""

    name: str
    """first line
    and second"""
    size: int = 3
    where: Path | None = None
    """a path"""
    tags: tuple[str, ...] = field(default_factory=lambda: ("a",))
    inner: RoundRules = field(default_factory=RoundRules)
    choice: BelowQuorum = BelowQuorum.FAIL


def test_fields_become_keys_with_default_and_help():
    keys = {k.name: k for k in keys_of(Sample)}
    assert keys["name"].default is REQUIRED
    assert keys["name"].help == "first line and second"
    assert keys["size"].default == 3
    assert keys["size"].help == ""
    assert keys["tags"].default == ("a",)
    assert keys["where"].is_path
    assert keys["choice"].choices == ("extend", "fail")


def test_fields_that_hold_structures_are_no_keys():
    assert "inner" not in {k.name for k in keys_of(Sample)}
    assert {k.name for k in keys_of(RunSpec)} == {"name", "seed", "wire_dtype"}


def test_a_key_may_have_a_shorter_name_than_its_field():
    (key,) = keys_of(Sample, size="s")
    assert (key.name, key.attribute) == ("s", "size")


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("3", int, 3),
        ("1e-3", float, 0.001),
        ("yes", bool, True),
        ("False", bool, False),
        ("3", str, "3"),
        ('"3"', str, "3"),
        ("", Path | None, None),
        ("a, b", tuple[str, ...], ["a", "b"]),
        ("", tuple[str, ...], []),
        ("many", int, "many"),
        ("2.5", None, 2.5),
        ("true", None, True),
        ("balanced", None, "balanced"),
    ],
)
def test_text_is_read_as_the_type_of_its_key(text, annotation, value):
    read = parse_literal(text, annotation)
    assert read == value
    assert type(read) is type(value)


def test_a_near_word_is_suggested_and_a_far_one_gets_the_list():
    assert did_you_mean("num_round", ["num_rounds", "quorum"]) == "Did you mean 'num_rounds'?"
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b"
    assert did_you_mean("zzz", []) == ""
