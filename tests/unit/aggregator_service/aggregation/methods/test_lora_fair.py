"""LoRA-FAIR: the ridge problem for B at the mean of A, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, mean_product, relative_error

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.lora_fair import LoRAFAIR
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError

W4 = weights(1, 2, 3, 4)


def fair(cohort, w=W4, ridge=1e-6, **more):
    return combine(LoRAFAIR(ridge=ridge), cohort, w, **more)


def test_two_clients_worked_by_hand():
    # T = 2, A = 1.5, B~ = 1.5: off by -0.25. lambda = ridge A^2, so
    # D = -0.25 * 1.5 / (2.25 (1 + ridge)): at ridge 1 half of the error goes.
    cohort = [
        LoraFactors(torch.tensor([[a]]).double(), torch.tensor([[b]]).double())
        for a, b in [(1.0, 2.0), (2.0, 1.0)]
    ]
    for ridge, product in ((1.0, 2.125), (1e-12, 2.0)):
        found = fair(cohort, weights(1, 1), ridge).factors
        assert float(found.a_RK) == 1.5
        assert float(found.delta_weight()) == pytest.approx(product, rel=1e-11)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("cohort", [unrelated([4] * 4), drifted(4, d=11, k=7, r=6)])
def test_the_correction_solves_the_dense_ridge_problem(cohort, ridge):
    # Rows sqrt(lambda) I below A^T pull the correction towards 0.
    rank, target = cohort[0].rank, ideal(cohort, W4)
    a = sum(w / 10 * f.a_RK for w, f in zip(W4, cohort, strict=True))
    b = sum(w / 10 * f.b_DR for w, f in zip(W4, cohort, strict=True))
    penalty = math.sqrt(ridge * float(a.square().sum()) / rank) * torch.eye(rank).double()
    left = torch.cat([a.T, penalty])
    right = torch.cat([(target - b @ a).T, torch.zeros(rank, cohort[0].out_features)])
    dense = torch.linalg.lstsq(left, right, driver="gelsd").solution.T
    found = fair(cohort, ridge=ridge).factors
    torch.testing.assert_close(found.b_DR, b + dense, rtol=1e-9, atol=1e-11)


def test_as_the_ridge_goes_to_0_the_error_is_orthogonal_to_the_rows_of_a():
    cohort = unrelated([4] * 4)
    found, target = fair(cohort, ridge=1e-12).factors, ideal(cohort, W4)
    error = found.delta_weight() - target
    assert float((error @ found.a_RK.T).norm()) < 1e-9 * float(error.norm())
    assert float(error.norm()) > 0.1 * float(target.norm())


def test_it_is_one_half_step_of_full_least_squares_from_the_factor_mean():
    # B = T A^T (A A^T)^-1 at A = sum_u w_u A_u.
    cohort = unrelated([4] * 4)
    found = fair(cohort, ridge=1e-12).factors
    half = ideal(cohort, W4) @ torch.linalg.pinv(found.a_RK)
    torch.testing.assert_close(found.b_DR, half, rtol=1e-8, atol=1e-9)


def test_a_large_ridge_gives_the_factor_mean():
    cohort = unrelated([4] * 4)
    found, mean = fair(cohort, ridge=1e14).factors, combine(FedIT(), cohort, W4).factors
    assert torch.equal(found.a_RK, mean.a_RK)
    torch.testing.assert_close(found.b_DR, mean.b_DR, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ridge", [1e-12, 1e-6, 1e-2, 1.0, 100.0])
def test_it_is_never_worse_than_fedit(ridge):
    for cohort in (drifted(4), unrelated([4] * 4), drifted(4, d=11, k=7, r=9)):
        target = ideal(cohort, W4)
        ours = relative_error(fair(cohort, ridge=ridge).factors.delta_weight(), target)
        assert ours < relative_error(mean_product(cohort, W4), target)


def test_a_larger_ridge_moves_b_less_and_leaves_more_error():
    cohort = unrelated([4] * 4)
    found = [fair(cohort, ridge=ridge) for ridge in (1e-6, 1e-2, 1.0, 100.0)]
    moved = [f.measurements["relative_correction"] for f in found]
    errors = [relative_error(f.factors.delta_weight(), ideal(cohort, W4)) for f in found]
    assert moved == sorted(moved, reverse=True)
    assert errors == sorted(errors)


def test_the_correction_keeps_its_digits_when_clients_barely_differ():
    # T - B~ A as a difference of products would be rounding at a relative drift of 1e-8.
    near, far = (fair(drifted(4, drift=d), ridge=1e-12) for d in (2.0**-26, 2.0**-13))
    moved = [f.measurements["relative_correction"] for f in (near, far)]
    assert moved[0] / moved[1] == pytest.approx(2.0**-26, rel=1e-3)


def test_a_common_a_leaves_the_factor_mean_which_is_exact():
    common = normal(5, 4, 17)
    cohort = [LoraFactors(common, normal(60 + u, 24, 4)) for u in range(4)]
    found = fair(cohort)
    assert found.measurements["relative_correction"] < 100 * EPS
    assert relative_error(found.factors.delta_weight(), ideal(cohort, W4)) < 100 * EPS


def test_means_of_a_that_have_no_rank_are_no_harm():
    deficient = [f.padded(6) for f in unrelated([2] * 4)]
    found = fair(deficient).factors
    assert relative_error(found.delta_weight(), ideal(deficient, W4)) < 1
    assert not found.b_DR[:, 2:].any()
    opposite = [start(), LoraFactors(-start().a_RK, start().b_DR)]
    assert not fair(opposite, weights(1, 1)).factors.delta_weight().any()


def test_scales_are_inside_b_and_the_published_adapter_has_the_error():
    folded = [
        LoraFactors.fold(f.a_RK, f.b_DR, s) for f, s in zip(drifted(4), (2, 0.5, 4, 1), strict=True)
    ]
    publication = Publication(dtype=torch.float64, scaling=4.0)
    found = fair(folded, publication=publication).factors
    lora_a, lora_b = publication.stored(found)
    torch.testing.assert_close(4.0 * lora_b @ lora_a, found.delta_weight())
    assert relative_error(found.delta_weight(), ideal(folded, W4)) < relative_error(
        mean_product(folded, W4), ideal(folded, W4)
    )


@pytest.mark.parametrize("ridge", [0.0, -1.0, math.inf, math.nan])
def test_a_ridge_that_is_none_is_refused(ridge):
    with pytest.raises(FedLoraError, match="lora_fair: expected a finite ridge above 0, got"):
        LoRAFAIR(ridge=ridge)
