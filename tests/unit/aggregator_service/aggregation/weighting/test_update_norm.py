"""Weights by update norm: shares of the norms, and what a cap does to them."""

from __future__ import annotations

import pytest
import torch
from support.builders import D, K, normal, unrelated, weights
from support.reference import EPS
from support.views import facts_view, geometry_view, permuted

from aggregator_service.aggregation.geometry import cohort_geometry
from aggregator_service.aggregation.weighting.base import WeightingView
from aggregator_service.aggregation.weighting.update_norm import UpdateNorm
from fedlora.errors import FedLoraError, Reason


def of_norms(*norms):
    """Updates of given norms and of no direction in common."""
    return geometry_view(
        [n * row for n, row in zip(norms, torch.eye(len(norms)).double(), strict=True)]
    )


def capped_minimiser(shares_U, cap):
    """argmin KL(w | shares) under the cap: min(cap, c * shares) with the c that sums to 1."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if float((middle * shares_U).clamp(max=cap).sum()) < 1 else (low, middle)
        )
    return (high * shares_U).clamp(max=cap)


def test_numbers_worked_by_hand():
    # 3-4-5: modules with norms 3 and 4 make a whole of norm 5; the other client has norm 15.
    one = torch.cat(
        [3 * normal(1, 9) / normal(1, 9).norm(), 4 * normal(2, 9) / normal(2, 9).norm()]
    )
    other = 15 * normal(3, 18) / normal(3, 18).norm()
    # What they were given is part of the products, and not subtracted.
    found = UpdateNorm().weigh(geometry_view([one, other], [normal(4, 18)] * 2))
    torch.testing.assert_close(found.values_U, weights(0.25, 0.75), rtol=100 * EPS, atol=0)
    assert found.measurements["largest_share_before_cap"] == pytest.approx(0.75, rel=1e-14)


def test_weights_are_the_shares_of_dense_norms_over_the_whole_model():
    modules = {m: unrelated([1, 3, 4], d=d, seed=m) for m, d in enumerate((D, 11, 13))}
    updates = facts_view([1, 1, 1]).updates
    view = WeightingView(
        updates=updates, geometry=lambda: cohort_geometry((f, None) for f in modules.values())
    )
    squares = [
        sum(float((modules[m][u].b_DR @ modules[m][u].a_RK).square().sum()) for m in modules)
        for u in range(3)
    ]
    norms = weights(*squares).sqrt()
    assert modules[0][0].in_features == K
    found = UpdateNorm().weigh(view).values_U
    torch.testing.assert_close(found, norms / norms.sum(), rtol=100 * EPS, atol=0)


def test_the_norm_does_not_care_how_a_product_is_factored():
    cohort = unrelated([4, 4])
    turned = [type(f)(f.a_RK * 8, f.b_DR / 8) for f in cohort]
    found, other = (
        UpdateNorm().weigh(
            WeightingView(
                updates=facts_view([1, 1]).updates,
                geometry=lambda members=members: cohort_geometry([(members, None)]),
            )
        )
        for members in (cohort, turned)
    )
    assert torch.equal(found.values_U, other.values_U)


def test_the_cap_holds_and_the_rest_keep_their_proportions():
    # Shares .8, .1, .1 under a cap of .5.
    found = UpdateNorm(cap=0.5).weigh(of_norms(8.0, 1.0, 1.0)).values_U
    torch.testing.assert_close(found, weights(0.5, 0.25, 0.25), rtol=10 * EPS, atol=0)


def test_what_is_cut_off_may_lift_others_to_the_cap():
    # Shares .6, .3, .1 under .4: the rest of .6 would give .45 and .15, so .4, .4, .2.
    found = UpdateNorm(cap=0.4).weigh(of_norms(6.0, 3.0, 1.0)).values_U
    torch.testing.assert_close(found, weights(0.4, 0.4, 0.2), rtol=10 * EPS, atol=0)


@pytest.mark.parametrize("cap", [0.21, 0.25, 0.3, 0.6, 1.0])
def test_capped_weights_are_the_nearest_in_divergence(cap):
    for seed in range(20):
        norms = 10 ** normal(seed, 5)
        view = of_norms(*norms.tolist())
        exact = view.geometry().products_UU.diagonal().sqrt()
        found = UpdateNorm(cap=cap).weigh(view).values_U
        expected = capped_minimiser(exact / exact.sum(), cap)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert float(found.sum()) == pytest.approx(1, abs=10 * EPS)
        assert float(found.max()) <= cap + 1e-12


def test_a_client_alone_in_having_learnt_anything_leaves_the_rest_to_the_others_equally():
    found = UpdateNorm(cap=0.5).weigh(of_norms(3.0, 0.0, 0.0)).values_U
    torch.testing.assert_close(found, weights(0.5, 0.25, 0.25), rtol=10 * EPS, atol=0)


@pytest.mark.parametrize("cap", [0.05, 0.25])
def test_a_cap_that_cannot_be_kept_means_equal_weights(cap):
    found = UpdateNorm(cap=cap).weigh(of_norms(8.0, 1.0, 1.0, 2.0)).values_U
    torch.testing.assert_close(found, torch.full((4,), 0.25).double(), rtol=0, atol=0)


def test_where_nothing_was_learnt_the_weights_are_the_data_weights():
    seen = geometry_view([torch.zeros(5).double()] * 3, examples=[1, 2, 5])
    found = UpdateNorm().weigh(seen).values_U
    torch.testing.assert_close(found, weights(1, 2, 5) / 8, rtol=2 * EPS, atol=0)


def test_weights_follow_their_clients():
    seen, order = of_norms(8.0, 1.0, 3.0, 2.0), [2, 0, 3, 1]
    rule = UpdateNorm(cap=0.4)
    found = rule.weigh(seen).values_U[torch.tensor(order)]
    other = rule.weigh(permuted(seen, order)).values_U
    torch.testing.assert_close(other, found, rtol=10 * EPS, atol=0)


@pytest.mark.parametrize("cap", [0.0, -1.0, 1.5, float("nan")])
def test_a_cap_outside_its_range_is_refused(cap):
    with pytest.raises(FedLoraError, match=f"expected 0 < cap <= 1, got {cap}") as caught:
        UpdateNorm(cap=cap)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
