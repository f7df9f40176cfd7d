"""FFA-LoRA: one frozen A, and the mean of B."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.dense_rounds import F32, play
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.ffa_lora import FFALoRA
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import WorkerFeature

A = normal(3, 6, 17)


def over(a, ranks, seed=0):
    return [LoraFactors(a[:r], normal(40 + seed + u, 24, r)) for u, r in enumerate(ranks)]


def test_one_number_worked_by_hand():
    # (3 * 2 + 1 * 6) / 4 = 3 over A = 5: the product is 15, and so is the mean of 10 and 30.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(5 * one, 2 * one), LoraFactors(5 * one, 6 * one)]
    found = combine(FFALoRA(), members, weights(3, 1)).factors
    assert (float(found.a_RK), float(found.b_DR)) == (5, 3)
    assert float(ideal(members, weights(3, 1))) == 15


@pytest.mark.parametrize("ranks", [[6, 6, 6], [2, 6, 3], [6]])
def test_it_is_exact_and_leaves_a_untouched(ranks):
    members, w = over(A, ranks), weights(*range(1, len(ranks) + 1))
    result = combine(FFALoRA(), members, w)
    assert torch.equal(result.factors.a_RK, A)
    assert relative_error(result.factors.delta_weight(), ideal(members, w)) < 100 * EPS
    assert result.base is None


def test_a_frozen_factor_of_more_components_than_the_layer_has():
    a = normal(4, 30, 17)
    members, w = over(a, [30, 20]), weights(1, 2)
    found = combine(FFALoRA(), members, w).factors.delta_weight()
    assert relative_error(found, ideal(members, w)) < 1000 * EPS


def test_rows_that_no_member_has_are_the_frozen_ones():
    first = GlobalModule(factors=LoraFactors(A, normal(9, 24, 6)))
    members, w = over(A, [2, 4]), weights(1, 1)
    found = combine(FFALoRA(), members, w, rank=6, start=first).factors
    assert torch.equal(found.a_RK, A)
    assert not found.b_DR[:, 4:].any()
    assert relative_error(found.delta_weight(), ideal(members, w)) < 100 * EPS


def test_a_does_not_change_over_rounds():
    first = GlobalModule(factors=F32.read_back(start()))
    versions, wanted = play(FFALoRA(), first, weights(1, 2, 3), rounds=3, rank=4, parts=(Part.B,))
    for version, target in zip(versions, wanted, strict=True):
        assert torch.equal(version.factors.a_RK, first.factors.a_RK)
        assert relative_error(version.factors.delta_weight(), target) < 1e-6


def test_what_a_run_is_told():
    recipe = compose(FFALoRA())
    (plan,) = recipe.plans()
    assert plan.trained == (Part.B,)
    assert plan.published == (Part.B,)
    assert plan.features == {WorkerFeature.PARTIAL_TRAINING}
    assert recipe.properties.exact
    assert recipe.properties.linear
    assert recipe.properties.mixed_ranks


def test_adapters_trained_in_both_factors_are_refused():
    with pytest.raises(FedLoraError, match="ffa_lora needs one lora_A for the whole") as caught:
        combine(FFALoRA(), drifted(3), weights(1, 1, 1))
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    with pytest.raises(FedLoraError, match=r"ffa_lora .* cannot publish rank 2"):
        combine(FFALoRA(), over(A, [6, 6]), weights(1, 1), rank=2)
