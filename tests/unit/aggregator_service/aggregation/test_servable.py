"""Published versions with parts that PEFT does not know, folded into one adapter."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import MODULES, normal, write_update
from support.reference import relative_error

from aggregator_service.aggregation.servable import servable_rank, write_servable
from fedlora.adapters.names import PREFIX, Part, parse_key, part_key

QUERY, VALUE = "encoder.0.query", "encoder.0.value"


def scaling(rank):
    """rsLoRA's, so that a change of rank changes s by more than its inverse."""
    return 8 / math.sqrt(rank)


def with_parts(path, seed, **parts):
    tensors = load_file(write_update(path, seed=seed, saved={"head.weight": (2, 3)}))
    save_file(
        tensors | {part_key(m, p): v.float() for (m, p), v in parts.get("more", {}).items()}, path
    )
    return path


def change(path, module, *, rank=None):
    """Dense, straight from the definition: s B R A + B_b A_b."""
    parts = {
        parse_key(k).part: v.double()
        for k, v in load_file(path).items()
        if parse_key(k).path == module
    }
    a, b = parts[Part.A], parts[Part.B]
    total = scaling(a.shape[0]) * b @ parts.get(Part.CORE, torch.eye(a.shape[0]).double()) @ a
    if Part.BASE_A in parts:
        total = total + parts[Part.BASE_B] @ parts[Part.BASE_A]
    return total


def test_a_plain_adapter_is_servable_as_it_is(tmp_path):
    assert servable_rank(write_update(tmp_path / "a", seed=1), scaling) == 4


def test_modules_of_different_rank_become_one_rank(tmp_path):
    source = write_update(tmp_path / "a", seed=1, ranks={QUERY: 2})
    assert servable_rank(source, scaling) == 0
    assert write_servable(source, tmp_path / "out", scaling=scaling) == 4
    for module in MODULES:
        assert relative_error(change(tmp_path / "out", module), change(source, module)) < 1e-6


@pytest.mark.parametrize("base_rank", [1, 5])
def test_what_was_added_to_the_base_and_a_core_are_folded_in(base_rank, tmp_path):
    more = {
        (QUERY, Part.BASE_A): normal(1, base_rank, 17),
        (QUERY, Part.BASE_B): normal(2, 24, base_rank),
        (VALUE, Part.CORE): normal(3, 4, 4),
    }
    source = with_parts(tmp_path / "a", 1, more=more)
    assert servable_rank(source, scaling) == 0
    assert write_servable(source, tmp_path / "out", scaling=scaling) == 4 + base_rank
    made = load_file(tmp_path / "out")
    assert {parse_key(k).part for k in made} == {Part.A, Part.B, None}
    assert {v.shape[0] for k, v in made.items() if parse_key(k).part is Part.A} == {4 + base_rank}
    for module in MODULES:
        assert relative_error(change(tmp_path / "out", module), change(source, module)) < 1e-6
    head = PREFIX + "head.weight"
    assert torch.equal(made[head], load_file(source)[head])


def test_components_that_change_nothing_are_left_out(tmp_path):
    source = with_parts(tmp_path / "a", 1)
    tensors = load_file(source)
    for module in MODULES:
        # A fresh adapter, as after a merge: everything is in the base.
        tensors[part_key(module, Part.B)].zero_()
        d, k = MODULES[module]
        tensors[part_key(module, Part.BASE_A)] = normal(5, 3, k).float()
        tensors[part_key(module, Part.BASE_B)] = normal(6, d, 3).float()
    save_file(tensors, source)
    # One component of A is kept where nothing else says the shape.
    assert write_servable(source, tmp_path / "out", scaling=scaling) == 4
    for module in MODULES:
        assert relative_error(change(tmp_path / "out", module), change(source, module)) < 1e-6
