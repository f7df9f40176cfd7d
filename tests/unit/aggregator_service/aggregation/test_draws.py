"""Adapters that change nothing yet: the laws of the drawn factor."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import start
from support.reference import EPS

from aggregator_service.aggregation.draws import Law, Side, drawn_adapter

LIKE = start()


def draw(rank, side, law, seed=0, like=LIKE):
    generator = torch.Generator().manual_seed(seed)
    return drawn_adapter(like, rank, drawn=side, law=law, generator=generator)


def rows(factors, side):
    return factors.a_RK if side is Side.A else factors.b_DR.T


@pytest.mark.parametrize("law", list(Law))
@pytest.mark.parametrize("side", list(Side))
@pytest.mark.parametrize("rank", [1, 4, 30])
def test_one_factor_is_drawn_and_the_product_is_zero(law, side, rank):
    found = draw(rank, side, law, like=LIKE.to(torch.float32))
    other = Side.B if side is Side.A else Side.A
    assert (found.rank, found.in_features, found.out_features) == (rank, 17, 24)
    assert found.dtype is torch.float64
    assert not rows(found, other).any()
    assert bool((rows(found, side).abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize("side", list(Side))
def test_orthonormal_rows_project(side):
    x = rows(draw(4, side, Law.ORTHONORMAL), side)
    torch.testing.assert_close(x @ x.T, torch.eye(4).double(), rtol=0, atol=100 * EPS)
    h = x.T @ x
    torch.testing.assert_close(h @ h, h, rtol=0, atol=100 * EPS)
    assert float(h.trace()) == pytest.approx(4, rel=1e-14)


def test_above_the_layers_size_orthonormal_columns_project_on_everything():
    x = draw(20, Side.A, Law.ORTHONORMAL).a_RK
    torch.testing.assert_close(x.T @ x, torch.eye(17).double(), rtol=0, atol=100 * EPS)


def test_normal_entries_have_variance_one_over_the_rows_length():
    # Mean of 2 * 10^5 squares of variance 2: a relative deviation of 0.02 is 6 sigma (1e-9).
    x = rows(draw(2000, Side.A, Law.NORMAL, like=start(k=100)), Side.A)
    assert float(x.square().mean()) * 100 == pytest.approx(1, abs=0.02)
    assert abs(float(x.mean())) * 10 < 6 / math.sqrt(200_000)


def test_normal_rows_do_not_project():
    x = rows(draw(4, Side.A, Law.NORMAL), Side.A)
    h = x.T @ x
    assert float((h @ h - h).norm()) > 0.1 * float(h.norm())


def test_initial_rows_have_the_norm_of_pefts():
    x = rows(draw(4, Side.B, Law.INITIAL), Side.B)
    torch.testing.assert_close(x @ x.T, torch.eye(4).double() / 3, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("law", list(Law))
def test_a_seed_decides_the_draw(law):
    one, same, other = (draw(4, Side.A, law, seed=s).a_RK for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert float((one - other).norm()) > 0.1
