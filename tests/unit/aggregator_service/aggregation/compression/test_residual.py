"""residual: what the published adapter lacks of the ideal goes into the base model."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.dense_rounds import F32, F64, effective, product, published
from support.recipes import combine
from support.reference import EPS, best_of_rank, ideal, mean_product, relative_error

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.compression.residual import Residual
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.flora_na import FLoRANA
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind


def residual(method, members, w, *, rank=4, publication=F64, start=None, **options):
    recipe = compose(method, compression=Residual(**options))
    return combine(recipe, members, w, rank=rank, publication=publication, start=start)


def test_one_number_worked_by_hand():
    # A = 2, B = 3, T = 9 (three quarters of 1 * 2, one of 5 * 6): the base model gains 3.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(one, 2 * one), LoraFactors(5 * one, 6 * one)]
    result = residual(FedIT(), members, weights(3, 1), rank=1)
    assert float(result.factors.delta_weight()) == 6
    assert float(result.base.delta_weight()) == pytest.approx(3, rel=1e-14)
    assert result.measurements["residual"] == pytest.approx(3 / 9, rel=1e-14)


@pytest.mark.parametrize("method", [FedIT(), FLoRANA(), Optimal()])
@pytest.mark.parametrize("base", [None, start(r=3, seed=9)])
def test_adapter_and_base_are_the_ideal_whatever_the_method(method, base):
    members, w = drifted(5), weights(5, 4, 3, 2, 1)
    before = GlobalModule(factors=start(), base=base)
    result = residual(method, members, w, start=before)
    wanted = product(base, ideal(members, w)) + ideal(members, w)
    assert relative_error(effective(result, wanted), wanted) < 1000 * EPS


@pytest.mark.parametrize("clients", [2, 3, 5])
@pytest.mark.parametrize("publication", [F32, F64])
def test_the_residual_of_a_factor_mean_has_rank_u_minus_one_times_r(clients, publication):
    members, w = drifted(clients, r=3), weights(*range(1, clients + 1))
    result = residual(FedIT(), members, w, rank=3, publication=publication)
    assert result.base.rank == (clients - 1) * 3
    assert result.measurements["residual_rank"] == (clients - 1) * 3


def test_the_adapter_is_the_combination_untouched():
    members, w = drifted(3), weights(1, 2, 3)
    kept = combine(FedIT(), members, w, rank=6).factors
    result = residual(FedIT(), members, w, rank=6).factors
    assert torch.equal(result.a_RK, kept.a_RK)
    assert torch.equal(result.b_DR, kept.b_DR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_rounding_the_adapter_lost_is_in_the_base_model(dtype):
    members, w = drifted(3), weights(1, 2, 3)
    publication = Publication(dtype=dtype, scaling=2.0)
    result = residual(FedIT(), members, w, publication=publication)
    target = ideal(members, w)
    rounded = publication.read_back(result.factors).delta_weight()
    assert relative_error(rounded, mean_product(members, w)) > 1e-4
    assert relative_error(rounded + product(result.base, target), target) < 2e-7


def test_published_in_float32_it_is_exact_to_float32():
    for seed in range(5):
        members, w = drifted(4, seed=seed), weights(1, 2, 3, 4)
        result = residual(FedIT(), members, w, publication=F32)
        target = ideal(members, w)
        assert relative_error(effective(published(result, F32), target), target) < 1e-6


@pytest.mark.parametrize("drift", [1e-2, 1e-4])
def test_a_small_residual_has_all_its_digits(drift):
    members, w = drifted(4, drift=drift), weights(1, 2, 3, 4)
    result = residual(FedIT(), members, w, start=GlobalModule(factors=start()))
    mean_b = sum(w[u] / 10 * f.b_DR for u, f in enumerate(members))
    mean_a = sum(w[u] / 10 * f.a_RK for u, f in enumerate(members))
    covariance = sum(
        w[u] / 10 * (f.b_DR - mean_b) @ (f.a_RK - mean_a) for u, f in enumerate(members)
    )
    # The published mean is rounded at eps; of a residual of drift^2 that much remains.
    assert relative_error(product(result.base, covariance), covariance) < 1e3 * EPS / drift**2


def test_clients_that_agree_leave_the_base_model_alone():
    common = normal(5, 4, 17)
    over_one_a = [LoraFactors(common, normal(60 + u, 24, 4)) for u in range(3)]
    for members in ([start()] * 3, over_one_a, [start()]):
        w = weights(*[1.0, 2.0, 4.0][: len(members)])
        for publication in (F32, F64):
            result = residual(FedIT(), members, w, publication=publication)
            assert result.base is None
            assert result.measurements["residual_rank"] == 0


def test_a_combination_of_higher_rank_is_truncated_and_the_rest_is_residual():
    members, w = unrelated([2, 6, 9]), weights(1, 2, 3)
    target = ideal(members, w)
    result = residual(Optimal(), members, w, rank=5)
    assert result.factors.rank == 5
    assert relative_error(result.factors.delta_weight(), best_of_rank(target, 5)) < 1e-12
    assert result.base.rank == 12
    assert relative_error(effective(result, target), target) < 1000 * EPS


def test_a_cap_leaves_the_best_approximation_of_the_residual():
    members, w = drifted(4), weights(1, 1, 1, 1)
    missing = ideal(members, w) - mean_product(members, w)
    result = residual(FedIT(), members, w, max_base_rank=5)
    assert relative_error(product(result.base, missing), best_of_rank(missing, 5)) < 1e-10
    assert result.measurements["base_rank"] == 5
    lost = relative_error(best_of_rank(missing, 5), missing)
    assert result.measurements["base_truncation_error"] == pytest.approx(lost, rel=1e-9)


def test_more_components_than_the_layer_has():
    members, w = drifted(3, r=20), weights(1, 2, 3)
    target = ideal(members, w)
    result = residual(FedIT(), members, w, rank=20)
    assert result.base.rank <= 17
    assert relative_error(effective(result, target), target) < 1e4 * EPS


def test_it_makes_every_method_exact_and_needs_every_update():
    found = compose(FedIT(), compression=Residual()).properties
    assert found.exact
    assert found.keeps_basis
    assert found.changes_base
    assert not found.linear
    assert found.kinds == {AdapterKind.LORA}
    assert not compose(FedIT(), compression=Residual(max_base_rank=4)).properties.exact
