"""FedSA-LoRA: the mean of A, with B at home."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedsa_lora import FedSALoRA
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.runs.plan import WorkerFeature


def at_home(*rows_RK):
    """Updates as the server completes them: A alone, with the identity for B."""
    return [LoraFactors(a, torch.eye(len(a), dtype=a.dtype)) for a in rows_RK]


def test_one_number_worked_by_hand():
    # (3 * 2 + 1 * 6) / 4 = 3.
    one = torch.ones(1, 1, dtype=torch.float64)
    found = combine(FedSALoRA(), at_home(2 * one, 6 * one), weights(3, 1)).factors
    assert float(found.a_RK) == 3
    assert float(found.b_DR) == 1


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_a_is_the_weighted_mean_and_the_stand_in_stays(rank):
    members, w = at_home(*(normal(u, rank, 17) for u in range(3))), weights(1, 2, 3)
    found = combine(FedSALoRA(), members, w).factors
    mean = sum(x * f.a_RK for x, f in zip(w / 6, members, strict=True))
    torch.testing.assert_close(found.a_RK, mean)
    assert torch.equal(found.b_DR, torch.eye(rank, dtype=torch.float64))
    # The identity makes A the product, of which the mean is exact.
    assert relative_error(found.delta_weight(), ideal(members, w)) < 10 * EPS


def test_what_a_run_is_told():
    recipe = compose(FedSALoRA())
    (plan,) = recipe.plans()
    assert (plan.trained, plan.private, plan.published) == ((Part.A,), (Part.B,), (Part.A,))
    assert plan.features == {WorkerFeature.PRIVATE_PARTS}
    assert recipe.properties.exact
    assert recipe.properties.linear
