from __future__ import annotations

import math

import pytest
import torch
from support.plugin_rounds import A, B, random_tensors, seen

from fedlora.errors import FedLoraError
from fedlora.plugins.clip import Clip


def clipped(max_norm: float, moved: float):
    """What a round that went `moved` times a random way comes to, and where it began."""
    given, way = random_tensors(0), random_tensors(1)
    trained = {n: given[n] + moved * way[n] for n in given}
    hooks = Clip(max_norm=max_norm).local(seen(trained, given))
    before = {n: t.clone() for n, t in trained.items()}
    if hooks.edit_update is not None:
        hooks.edit_update()
    return trained, before, given


def norm(one, other) -> float:
    return math.sqrt(sum(float((one[n] - other[n]).square().sum()) for n in one))


def test_an_update_beyond_the_bound_is_cut_to_it_and_keeps_its_direction():
    trained, before, given = clipped(0.5, moved=3.0)
    assert norm(trained, given) == pytest.approx(0.5, rel=1e-12)
    share = 0.5 / norm(before, given)
    for name, tensor in trained.items():
        assert torch.allclose(tensor, given[name] + share * (before[name] - given[name]))


@pytest.mark.parametrize("max_norm", [0.01, 0.5, 20.0])
def test_the_product_of_a_clipped_update_moves_by_no_more_than_its_page_says(max_norm: float):
    trained, _, given = clipped(max_norm, moved=50.0)
    scaling = 2.0
    moved = scaling * torch.linalg.matrix_norm(trained[B] @ trained[A] - given[B] @ given[A])
    lengths = torch.linalg.matrix_norm(given[B]) + torch.linalg.matrix_norm(given[A])
    assert norm(trained, given) == pytest.approx(max_norm, rel=1e-12)
    assert 0 < float(moved) <= scaling * (float(lengths) * max_norm + max_norm**2)


@pytest.mark.parametrize(("max_norm", "moved"), [(100.0, 1.0), (0.0, 50.0)])
def test_an_update_within_the_bound_and_one_without_a_bound_stay_bit_for_bit(max_norm, moved):
    trained, before, _ = clipped(max_norm, moved)
    assert all(torch.equal(trained[n], before[n]) for n in trained)


def test_without_a_bound_nothing_is_done():
    assert Clip(max_norm=0.0).local(seen({}, {})).edit_update is None


def test_a_bound_that_is_none_is_refused():
    with pytest.raises(FedLoraError, match=r"plugins\.clip\.max_norm: .* got -1"):
        Clip(max_norm=-1.0)
