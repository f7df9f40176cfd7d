from __future__ import annotations

import json

import pytest

from client_worker.data.described import described, raised


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("Jane Doe, 47", "str of length 12"),
        ("", "str of length 0"),
        (["Jane", "Doe"], "list of length 2"),
        ({"Jane": "Doe"}, "dict of length 1"),
        (b"Jane", "bytes of length 4"),
        (47, "int"),
        (0.47, "float"),
        (True, "bool"),
        (None, "NoneType"),
    ],
)
def test_a_value_is_told_by_its_kind_and_length(value: object, words: str):
    assert described(value) == words


def test_an_exception_is_told_by_its_kind_and_where_it_was_raised():
    with pytest.raises(ValueError, match="Jane") as caught:
        int("Jane")
    line = caught.traceback[-1].lineno + 1
    assert raised(caught.value) == f"ValueError at test_described.py, line {line}"


def test_the_place_is_that_of_the_code_that_raised_it():
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("Jane")
    assert raised(caught.value).startswith("JSONDecodeError at decoder.py, line ")


def test_an_exception_that_nobody_raised_has_no_place():
    assert raised(KeyError("Jane")) == "KeyError"
