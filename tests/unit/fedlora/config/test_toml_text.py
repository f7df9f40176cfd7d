"""A configuration that is written can be read again, and means the same."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.sample_run import sample_spec

from fedlora.config import load_config, run_entries, toml_text, toml_value
from fedlora.runs.training import LearningRateSchedule

plain = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(plain | st.lists(plain))
def test_every_value_reads_back_as_itself(value):
    assert tomllib.loads(f"value = {toml_value(value)}")["value"] == value


def test_nan_reads_back_as_nan():
    assert math.isnan(tomllib.loads(f"value = {toml_value(math.nan)}")["value"])


def test_enumerations_and_paths_are_written_as_strings():
    assert toml_value(LearningRateSchedule.COSINE) == '"cosine"'
    assert toml_value(Path("a") / "b") == '"a/b"'


def test_what_toml_cannot_say_is_refused():
    with pytest.raises(TypeError, match="dict"):
        toml_value({})


def test_a_run_that_is_written_and_read_is_the_same_run(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(toml_text(run_entries(sample_spec())))
    assert load_config(file, environ={}).run == sample_spec()


def test_a_run_without_partition_is_read_as_one(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(toml_text(run_entries(sample_spec(partition=None))))
    assert load_config(file, environ={}).run == sample_spec(partition=None)
