"""Laws that every aggregation method of the registry keeps, stated on products B A.

Tolerances: sums and decompositions in float64 leave a relative error of a few hundred eps for
layers of this size and condition; 1e-9 is far above that and far below any real difference.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import drifted, normal, start, unrelated, weights
from support.reference import ideal, mean_product, relative_error, tail_norm

from aggregator_service.aggregation.registry import METHODS, create
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

TOLERANCE = 1e-9

every_method = pytest.mark.parametrize("name", sorted(METHODS))


def combined(name, cohort, weights_U, rank=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rank = max(f.rank for f in cohort) if rank is None else rank
    return create(name).aggregate_module(cohort, weights_U, rank=rank, generator=generator).factors


@every_method
def test_one_client_gets_its_own_product_back(name):
    client = start()
    result = combined(name, [client], weights(3.0))
    assert relative_error(result.delta_weight(), client.delta_weight()) < TOLERANCE


@every_method
def test_identical_clients_get_their_product_back(name):
    client = start()
    result = combined(name, [client] * 4, weights(1, 2, 3, 4))
    assert relative_error(result.delta_weight(), client.delta_weight()) < TOLERANCE


@every_method
def test_a_client_of_zero_weight_changes_no_bit(name):
    cohort, stranger = drifted(4), start(seed=77)
    without = combined(name, cohort, weights(1, 2, 3, 4))
    with_it = combined(name, [*cohort[:2], stranger, *cohort[2:]], weights(1, 2, 0, 3, 4))
    assert torch.equal(without.a_RK, with_it.a_RK)
    assert torch.equal(without.b_DR, with_it.b_DR)


@every_method
def test_the_order_of_clients_does_not_matter(name):
    cohort, w = drifted(5), weights(1, 2, 3, 4, 5)
    turned = [3, 0, 4, 2, 1]
    straight = combined(name, cohort, w)
    shuffled = combined(name, [cohort[i] for i in turned], w[turned])
    assert relative_error(shuffled.delta_weight(), straight.delta_weight()) < 1e-6


@every_method
def test_weights_count_by_their_ratios(name):
    cohort = drifted(3)
    small, large = (combined(name, cohort, weights(1, 2, 3) * c) for c in (1.0, 512.0))
    assert torch.equal(small.a_RK, large.a_RK)
    assert torch.equal(small.b_DR, large.b_DR)


@every_method
def test_a_cohort_listed_twice_gives_the_same_product(name):
    cohort, w = drifted(3), weights(1, 2, 3)
    once, twice = combined(name, cohort, w), combined(name, cohort * 2, torch.cat([w, w]))
    assert relative_error(twice.delta_weight(), once.delta_weight()) < 1e-6


@every_method
def test_a_common_a_makes_every_method_exact(name):
    common = normal(5, 4, 17)
    cohort = [LoraFactors(common, normal(60 + u, 24, 4)) for u in range(4)]
    w = weights(1, 2, 3, 4)
    result = combined(name, cohort, w)
    assert relative_error(result.delta_weight(), ideal(cohort, w)) < TOLERANCE


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_dtype_are_those_of_the_cohort(name, dtype):
    cohort = [f.to(dtype) for f in drifted(3)]
    result = combined(name, cohort, weights(1, 1, 1), rank=6)
    assert result.dtype == dtype
    assert (result.out_features, result.rank, result.in_features) == (24, 6, 17)


@every_method
def test_low_precision_updates_are_summed_in_float64(name):
    # 1 + 2^-9 + .. would vanish term by term in bfloat16; only the result may be rounded.
    cohort = [f.to(torch.bfloat16) for f in drifted(8, drift=0.01)]
    w = weights(*[1.0] * 8)
    exact = combined(name, [f.to(torch.float64) for f in cohort], w)
    rounded = combined(name, cohort, w)
    assert relative_error(rounded.delta_weight(), exact.delta_weight()) < 2**-6


@every_method
def test_equal_seeds_give_equal_bits(name):
    cohort, w = unrelated([4] * 4), weights(4, 3, 2, 1)
    first, second = (combined(name, cohort, w, rank=7, seed=5) for _ in range(2))
    assert torch.equal(first.a_RK, second.a_RK)
    assert torch.equal(first.b_DR, second.b_DR)


@every_method
@pytest.mark.parametrize("rank", [1, 17, 24])
def test_results_are_finite_for_odd_ranks_and_lopsided_scales(name, rank):
    cohort = [
        LoraFactors(f.a_RK * 10.0 ** (3 * u - 3), f.b_DR * 10.0 ** (2 - 3 * u))
        for u, f in enumerate(unrelated([rank] * 3))
    ]
    result = combined(name, cohort, weights(1e-12, 1, 1e3))
    assert bool(torch.isfinite(result.a_RK).all())
    assert bool(torch.isfinite(result.b_DR).all())


@every_method
def test_a_zero_update_stays_zero_and_can_still_learn(name):
    first = start()
    cohort = [LoraFactors(first.a_RK, torch.zeros_like(first.b_DR))] * 3
    result = combined(name, cohort, weights(1, 1, 1))
    assert not bool(result.delta_weight().any())
    # The gradient of B is G A^T: rows of A must not vanish with B.
    assert bool((result.a_RK.norm(dim=1) > 0.1).all())


@every_method
def test_spare_components_keep_the_product_and_can_learn(name):
    cohort, w = drifted(3), weights(1, 2, 3)
    narrow, wide = combined(name, cohort, w, rank=16), combined(name, cohort, w, rank=17)
    spare = (wide.b_DR.norm(dim=0) == 0).nonzero().flatten()
    assert len(spare) >= 5
    assert bool((wide.a_RK[spare].norm(dim=1) > 0.5).all())
    assert relative_error(wide.delta_weight(), narrow.delta_weight()) < TOLERANCE


@every_method
def test_no_method_is_better_than_the_bound_or_worse_than_the_factor_mean(name):
    for cohort in (drifted(6), unrelated([4] * 5)):
        w = weights(*range(1, len(cohort) + 1))
        target = ideal(cohort, w)
        error = float((combined(name, cohort, w).delta_weight() - target).norm())
        slack = TOLERANCE * float(target.norm())
        assert tail_norm(target, 4) - slack <= error
        assert error <= float((mean_product(cohort, w) - target).norm()) + slack


@every_method
def test_mixed_ranks_are_taken_or_refused_as_the_registry_says(name):
    cohort, w = unrelated([2, 4, 3]), weights(1, 2, 3)
    if METHODS[name].mixed_ranks:
        assert combined(name, cohort, w).rank == 4
        return
    with pytest.raises(FedLoraError, match=r"got \[2, 3, 4\]") as caught:
        combined(name, cohort, w)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "optimal" in caught.value.hint


@every_method
@pytest.mark.parametrize("bad", [(0.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, 2.0, 3.0)])
def test_weights_that_make_no_cohort_are_refused(name, bad):
    with pytest.raises(FedLoraError, match="weights") as caught:
        combined(name, drifted(2), weights(*bad))
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@every_method
def test_members_of_different_shape_are_refused(name):
    with pytest.raises(FedLoraError, match="one module must have one shape"):
        combined(name, [start(), start(d=23)], weights(1, 1))


@every_method
@given(
    count=st.integers(1, 5),
    rank=st.integers(1, 5),
    drift=st.floats(1e-6, 10.0),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=15, deadline=None)
def test_errors_are_ordered_for_any_cohort(name, count, rank, drift, seed):
    cohort = drifted(count, drift=drift, r=rank, d=11, k=8, seed=seed)
    w = weights(*[1.0 + (u * seed) % 3 for u in range(count)])
    target = ideal(cohort, w)
    error = float((combined(name, cohort, w).delta_weight() - target).norm())
    # Dense products of factors of size 10 lose a few hundred eps.
    slack = 1e-11 * max(float(f.a_RK.norm() * f.b_DR.norm()) for f in cohort)
    assert error <= float((mean_product(cohort, w) - target).norm()) + slack
    assert error >= tail_norm(target, rank) - slack
