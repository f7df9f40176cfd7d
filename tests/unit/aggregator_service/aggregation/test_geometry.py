"""Inner products of whole adapters against dense products."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated
from support.reference import EPS

from aggregator_service.aggregation.geometry import cohort_geometry, increment
from fedlora.adapters.factors import LoraFactors

SHAPES = [(24, 17), (11, 17), (13, 24)]
"""out_features and in_features of three modules of one adapter"""


def adapter(ranks, seed):
    """Per module, the cohort's factors."""
    return [unrelated(ranks, d=d, k=k, seed=seed + i) for i, (d, k) in enumerate(SHAPES)]


def vectors(modules):
    """One dense row per client: all modules, flattened."""
    clients = zip(*modules, strict=True)
    rows = [torch.cat([f.delta_weight().double().flatten() for f in mine]) for mine in clients]
    return torch.stack(rows)


@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 8, 3], [2, 20], [5]])
def test_everything_is_as_with_dense_products(ranks):
    members, sent = adapter(ranks, 0), adapter(ranks, 10)
    found = cohort_geometry(zip(members, sent, strict=True))
    new, old = vectors(members), vectors(sent)
    size = 1000 * EPS * float(new.norm() ** 2 + old.norm() ** 2)
    expected = {
        "products_UU": new @ new.T,
        "increments_UU": (new - old) @ (new - old).T,
        "start_U": (new * old).sum(dim=1),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=size)
    torch.testing.assert_close(found.start_norms_U, old.norm(dim=1), rtol=1000 * EPS, atol=0)


def test_one_number_worked_by_hand():
    # B A = 2 * 3 = 6 and 5 * 1 = 5; given 1 * 1 = 1 and 2 * 2 = 4: increments 5 and 1.
    def scalar(a, b):
        return LoraFactors(torch.tensor([[a]]).double(), torch.tensor([[b]]).double())

    found = cohort_geometry([([scalar(3, 2), scalar(1, 5)], [scalar(1, 1), scalar(2, 2)])])
    assert found.products_UU.tolist() == [[36, 30], [30, 25]]
    assert found.increments_UU.tolist() == [[25, 5], [5, 1]]
    assert found.start_U.tolist() == [6, 20]
    assert found.start_norms_U.tolist() == [1, 4]


def test_without_a_known_start_increments_are_the_products():
    found = cohort_geometry((module, None) for module in adapter([4, 2], 0))
    assert torch.equal(found.increments_UU, found.products_UU)
    assert found.start_U.tolist() == found.start_norms_U.tolist() == [0, 0]


@pytest.mark.parametrize("drift", [1e-3, 1e-6, 1e-10])
def test_small_increments_keep_their_digits(drift):
    # From squared norms the last two cases would have no digit, from dense products the last six.
    sent = [start(r=r) for r in (4, 2, 6)]
    steps = [
        (normal(70 + u, *f.a_RK.shape), normal(80 + u, *f.b_DR.shape)) for u, f in enumerate(sent)
    ]
    members = [
        LoraFactors(f.a_RK + drift * a, f.b_DR + drift * b)
        for f, (a, b) in zip(sent, steps, strict=True)
    ]
    # Exact steps, as rounded into the members.
    exact = [
        ((f.b_DR - g.b_DR) @ g.a_RK + g.b_DR @ (f.a_RK - g.a_RK))
        + (f.b_DR - g.b_DR) @ (f.a_RK - g.a_RK)
        for f, g in zip(members, sent, strict=True)
    ]
    rows = torch.stack([x.flatten() for x in exact])
    found = cohort_geometry([(members, sent)]).increments_UU
    norms = rows.norm(dim=1)
    torch.testing.assert_close(
        found / (norms[:, None] * norms),
        (rows / norms[:, None]) @ (rows / norms[:, None]).T,
        rtol=0,
        atol=1000 * EPS,
    )


def test_clients_that_did_not_move_have_no_increment():
    sent = unrelated([4, 2, 7])
    assert not cohort_geometry([(sent, sent)]).increments_UU.any()


def test_a_start_of_another_rank_is_padded():
    member, given = start(r=4), start(r=2, seed=5)
    dense = member.delta_weight() - given.delta_weight()
    for one, other, sign in ((member, given, 1), (given, member, -1)):
        found = increment(one, other)
        assert found.rank == 8
        torch.testing.assert_close(found.delta_weight(), sign * dense, rtol=0, atol=1e4 * EPS)


def test_half_precision_members_are_measured_in_float64():
    members = [f.to(torch.bfloat16) for f in drifted(3)]
    sent = [start().to(torch.bfloat16)] * 3
    wide = [f.to(torch.float64) for f in members], [f.to(torch.float64) for f in sent]
    one, other = cohort_geometry([(members, sent)]), cohort_geometry([wide])
    assert one.increments_UU.dtype == torch.float64
    assert torch.equal(one.increments_UU, other.increments_UU)
    assert torch.equal(one.start_U, other.start_U)


def test_matrices_are_symmetric_to_the_bit():
    found = cohort_geometry([(unrelated([3, 5, 2]), unrelated([3, 5, 2], seed=1))])
    assert torch.equal(found.products_UU, found.products_UU.T)
    assert torch.equal(found.increments_UU, found.increments_UU.T)


def test_modules_are_read_one_at_a_time():
    taken = []

    def stream():
        for i, module in enumerate(adapter([2, 3], 0)):
            taken.append(i)
            yield module, None

    modules = stream()
    next(modules)
    cohort_geometry(modules)
    assert taken == [0, 1, 2]
