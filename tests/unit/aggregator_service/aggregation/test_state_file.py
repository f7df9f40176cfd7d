"""What a recipe remembers, written and read back."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal

from aggregator_service.aggregation.state_file import WEIGHTING, StateReader, StateWriter


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_every_owner_gets_its_own_tensors_back_bit_for_bit(dtype, tmp_path):
    written = {
        WEIGHTING: {"logit.worker|one": normal(1, 3).to(dtype)},
        "encoder.0.query": {"delta_a": normal(2, 4, 5).to(dtype), "values": normal(3, 4).to(dtype)},
        "encoder.1.dense": {"values": normal(4, 0).to(dtype)},
    }
    with StateWriter(tmp_path / "state") as writer:
        for owner, state in written.items():
            writer.put(owner, state)
    assert not writer.is_empty
    with StateReader(tmp_path / "state") as reader:
        for owner, state in written.items():
            read = reader.of(owner)
            assert read.keys() == state.keys()
            assert all(torch.equal(read[name], state[name]) for name in state)
            assert all(read[name].dtype == dtype for name in state)
        assert reader.every("values").keys() == {"encoder.0.query", "encoder.1.dense"}
        assert reader.every("delta_a").keys() == {"encoder.0.query"}
        for owner, value in reader.every("values").items():
            assert torch.equal(value, written[owner]["values"])
        assert reader.of("encoder.2.dense") == {}


def test_without_a_file_there_is_nothing_and_nothing_is_kept(tmp_path):
    with StateReader(None) as reader:
        assert reader.of("encoder.0.query") == {}
        assert reader.every("values") == {}
    with StateWriter(None) as writer:
        writer.put("encoder.0.query", {"values": normal(1, 2)})
    assert writer.is_empty


def test_a_recipe_that_remembers_nothing_is_told_apart(tmp_path):
    with StateWriter(tmp_path / "state") as writer:
        writer.put("encoder.0.query", {})
    assert writer.is_empty


def test_the_same_state_is_the_same_bytes_in_any_order(tmp_path):
    values = {"b": normal(1, 2), "a": normal(2, 3)}
    for name, state in (("one", values), ("two", dict(reversed(values.items())))):
        with StateWriter(tmp_path / name) as writer:
            writer.put("module", state)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
