"""HetLoRA: zero padding, norm weights, and ranks that may fall."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, start, unrelated, weights
from support.recipes import combine

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.hetlora import HetLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule
from aggregator_service.aggregation.weighting.update_norm import UpdateNorm
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import WorkerFeature

RANKS = [2, 5, 3]
W3 = weights(1, 2, 3)


def dense_mean(members, w, rank):
    a = torch.zeros(rank, 17, dtype=torch.float64)
    b = torch.zeros(24, rank, dtype=torch.float64)
    for x, f in zip(w / w.sum(), members, strict=True):
        a[: f.rank] += x * f.a_RK
        b[:, : f.rank] += x * f.b_DR
    return a, b


def test_one_number_worked_by_hand():
    # Ranks 1 and 2, equal weights: the second component is halved in each factor. The product is
    # (2 + 4) / 2 * (3 + 5) / 2 + 6 / 2 * 8 / 2 = 24; the mean of products (6 + 20 + 48) / 2 = 37.
    small = LoraFactors(torch.tensor([[3.0]]).double(), torch.tensor([[2.0]]).double())
    large = LoraFactors(torch.tensor([[5.0], [8.0]]).double(), torch.tensor([[4.0, 6.0]]).double())
    found = combine(HetLoRA(), [small, large], weights(1, 1)).factors
    assert found.a_RK.tolist() == [[4.0], [4.0]]
    assert found.b_DR.tolist() == [[3.0, 3.0]]
    assert float(found.delta_weight()) == 24.0


def test_factors_are_padded_with_zeros_and_averaged():
    members = unrelated(RANKS)
    found = combine(HetLoRA(), members, W3).factors
    a, b = dense_mean(members, W3, 5)
    torch.testing.assert_close(found.a_RK, a)
    torch.testing.assert_close(found.b_DR, b)


def test_padding_keeps_products_and_the_first_components_of_a_padded_adapter_are_it():
    for f in unrelated([1, 4, 20]):
        wide = f.padded(22)
        torch.testing.assert_close(wide.delta_weight(), f.delta_weight())
        assert torch.equal(wide.a_RK[: f.rank], f.a_RK)
        assert torch.equal(wide.b_DR[:, : f.rank], f.b_DR)


def test_components_that_no_update_reaches_stay_as_they_were():
    first = GlobalModule(factors=start(r=8, seed=3))
    found = combine(HetLoRA(), unrelated(RANKS), W3, rank=8, start=first).factors
    assert torch.equal(found.a_RK[5:], first.factors.a_RK[5:])
    assert torch.equal(found.b_DR[:, 5:], first.factors.b_DR[:, 5:])
    # Published at a lower rank, there is no room for them.
    assert combine(HetLoRA(), unrelated(RANKS), W3, rank=5, start=first).factors.rank == 5


def test_what_a_run_is_told():
    (plan,) = compose(HetLoRA(tail_fraction=0.8, tail_penalty=0.01, min_rank=2)).plans()
    assert plan.may_lower_rank
    assert plan.features == {WorkerFeature.RANK_PRUNING}
    assert plan.settings == {"tail_fraction": 0.8, "tail_penalty": 0.01, "min_rank": 2.0}
    recipe = compose(HetLoRA(cap=0.4))
    assert recipe.weighting == UpdateNorm(cap=0.4)
    # Norm weights need every update by itself.
    assert not recipe.properties.linear
    assert recipe.properties.mixed_ranks


@pytest.mark.parametrize(
    "options",
    [
        {"tail_fraction": 0.0},
        {"tail_fraction": 1.5},
        {"tail_penalty": -1.0},
        {"tail_penalty": float("inf")},
        {"min_rank": 0},
        {"cap": 0.0},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(FedLoraError, match="expected") as caught:
        HetLoRA(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_a_result_of_lower_rank_than_the_updates_is_refused():
    with pytest.raises(FedLoraError, match=r"hetlora .* cannot publish rank 2"):
        combine(
            HetLoRA(),
            [start(r=4), LoraFactors(normal(1, 4, 17), normal(2, 24, 4))],
            weights(1, 1),
            rank=2,
        )
