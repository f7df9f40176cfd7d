"""Fed-SB: the mean of the cores between a fixed A and B."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fed_sb import FedSB
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import WorkerFeature

A, B = normal(1, 20, 17), normal(2, 24, 20)


def cohort(cores, w, **more):
    """Updates as the server completes them: the core inside B, and by itself."""
    members = [LoraFactors(A[: len(r)], B[:, : len(r)] @ r) for r in cores]
    return combine(FedSB(), members, w, extras=[{Part.CORE: r} for r in cores], **more), members


def test_one_number_worked_by_hand():
    # Between B = 2 and A = 5, cores 1 and 9 with weights 3 : 1 have the mean 3: 2 * 3 * 5.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(5 * one, 2 * r * one) for r in (1, 9)]
    extras = [{Part.CORE: r * one} for r in (1, 9)]
    result = combine(FedSB(), members, weights(3, 1), extras=extras)
    assert float(result.extras[Part.CORE]) == 3
    assert float(result.factors.delta_weight()) == 30


@pytest.mark.parametrize("deficient", [False, True])
@pytest.mark.parametrize("rank", [1, 4, 20])
def test_b_times_the_mean_core_times_a_is_the_mean_of_products(rank, deficient):
    cores = [normal(10 + u, rank, rank) for u in range(3)]
    if deficient:
        cores = [r[:, :1] @ r[:1] for r in cores]
    w = weights(1, 2, 3)
    result, members = cohort(cores, w)
    core = result.extras[Part.CORE]
    torch.testing.assert_close(core, (cores[0] + 2 * cores[1] + 3 * cores[2]) / 6)
    assert relative_error(B[:, :rank] @ core @ A[:rank], ideal(members, w)) < 200 * EPS
    # What the certificate reads is the same product.
    assert relative_error(result.factors.delta_weight(), ideal(members, w)) < 200 * EPS
    assert torch.equal(result.factors.a_RK, A[:rank])


def test_what_a_run_is_told():
    recipe = compose(FedSB())
    (plan,) = recipe.plans()
    assert plan.trained == plan.published == (Part.CORE,)
    assert WorkerFeature.CORE_MATRIX in plan.features
    assert recipe.properties.exact
    assert recipe.properties.linear


def test_adapters_without_a_core_are_refused():
    with pytest.raises(FedLoraError, match="got adapters without one") as caught:
        combine(FedSB(), drifted(2), weights(1, 1))
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "optimal" in caught.value.hint


def test_one_adapter_without_a_core_is_enough_to_refuse():
    core = torch.eye(4, dtype=torch.float64)
    members = [LoraFactors(A[:4], B[:, :4])] * 2
    with pytest.raises(FedLoraError, match="got adapters without one"):
        combine(FedSB(), members, weights(1, 1), extras=[{Part.CORE: core}, {}])


def test_an_a_that_is_not_common_is_named():
    members = drifted(2)
    extras = [{Part.CORE: torch.eye(4, dtype=torch.float64)}] * 2
    with pytest.raises(FedLoraError, match="fed_sb needs one lora_A for the whole cohort"):
        combine(FedSB(), members, weights(1, 1), extras=extras)
