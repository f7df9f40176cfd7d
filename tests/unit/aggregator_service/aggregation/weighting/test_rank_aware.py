"""Weights by examples times rank."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.builders import normal, weights
from support.reference import EPS
from support.views import facts_view

from aggregator_service.aggregation.weighting.base import WeightingView
from aggregator_service.aggregation.weighting.examples import NumExamples
from aggregator_service.aggregation.weighting.rank_aware import RankAware
from fedlora.errors import FedLoraError, Reason


def view(examples, ranks):
    seen = facts_view(examples)
    updates = tuple(replace(u, rank=r) for u, r in zip(seen.updates, ranks, strict=True))
    return WeightingView(updates=updates, geometry=seen.geometry)


def test_numbers_worked_by_hand():
    # n r = 40, 160, 200.
    found = RankAware().weigh(view([10, 20, 100], [4, 8, 2]))
    torch.testing.assert_close(found.values_U, weights(0.1, 0.4, 0.5), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("rank", [1, 3, 7, 64])
def test_one_rank_for_all_gives_the_data_weights_bit_for_bit(rank):
    for seed in range(20):
        seen = view((100 * normal(seed, 3).abs()).tolist(), [rank] * 3)
        found = RankAware().weigh(seen)
        assert torch.equal(found.values_U, NumExamples().weigh(seen).values_U)
        assert found.measurements["moved_from_data_weights"] == 0


def test_a_client_without_examples_has_no_weight():
    assert RankAware().weigh(view([0, 20], [64, 1])).values_U.tolist() == [0, 1]


def test_updates_without_examples_are_refused():
    with pytest.raises(FedLoraError, match="none of the 2 updates has a positive") as caught:
        RankAware().weigh(view([0, 0], [4, 8]))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
