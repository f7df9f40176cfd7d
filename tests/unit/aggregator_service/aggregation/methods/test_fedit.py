"""FedIT: the means of the factors, and what that costs."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, mean_product, relative_error

from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.methods.fedit import FedIT
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason


def test_two_clients_worked_by_hand():
    # A = (3 * 1 + 1 * 5) / 4 = 2,  B = (3 * 2 + 1 * 6) / 4 = 3;  T = (3 * 2 + 1 * 30) / 4 = 9
    one, two = (
        LoraFactors(torch.tensor([[a]]), torch.tensor([[b]])) for a, b in [(1.0, 2.0), (5.0, 6.0)]
    )
    mean = combine(FedIT(), [one, two], weights(3, 1), rank=1).factors
    assert (float(mean.a_RK), float(mean.b_DR)) == (2.0, 3.0)
    assert float(ideal([one, two], weights(3, 1))) == 9.0


def test_means_are_those_of_the_dense_definition():
    cohort, w = drifted(5), weights(5, 4, 3, 2, 1)
    mean = combine(FedIT(), cohort, w, rank=4).factors
    expected = mean_product(cohort, w)
    torch.testing.assert_close(mean.delta_weight(), expected, rtol=0, atol=100 * EPS)


def test_its_error_is_the_covariance_of_the_factors():
    cohort, w = unrelated([4] * 4), weights(1, 2, 3, 4) / 10
    mean = factor_mean(cohort, w)
    covariance = sum(
        w[u] * (f.b_DR - mean.b_DR) @ (f.a_RK - mean.a_RK) for u, f in enumerate(cohort)
    )
    missing = ideal(cohort, w) - mean.delta_weight()
    torch.testing.assert_close(missing, covariance, rtol=0, atol=1000 * EPS)


def test_it_is_exact_after_one_step_from_a_common_start_and_not_after_two():
    # B = 0 keeps the gradient of A at zero for a step, so that all have one A.
    a0, b0 = normal(5, 4, 17), torch.zeros(24, 4, dtype=torch.float64)
    w, gradients = weights(1, 2, 3), [normal(90 + u, 24, 17) for u in range(3)]
    cohort, errors = [LoraFactors(a0, b0)] * 3, []
    for _ in range(2):
        cohort = [
            LoraFactors(f.a_RK - 0.1 * f.b_DR.T @ g, f.b_DR - 0.1 * g @ f.a_RK.T)
            for f, g in zip(cohort, gradients, strict=True)
        ]
        found = combine(FedIT(), cohort, w).factors.delta_weight()
        errors.append(relative_error(found, ideal(cohort, w)))
    assert errors[0] < 100 * EPS
    assert errors[1] > 1e-2


def test_a_common_b_makes_it_exact():
    common = normal(3, 24, 4)
    cohort = [LoraFactors(normal(u, 4, 17), common) for u in range(3)]
    mean = combine(FedIT(), cohort, weights(1, 1, 2), rank=4).factors
    torch.testing.assert_close(
        mean.delta_weight(), ideal(cohort, weights(1, 1, 2)), rtol=0, atol=1000 * EPS
    )


def test_it_cannot_publish_a_lower_rank_than_it_receives():
    with pytest.raises(
        FedLoraError, match="cannot publish rank 2 from updates of rank 4"
    ) as caught:
        combine(FedIT(), drifted(2), weights(1, 1), rank=2)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
