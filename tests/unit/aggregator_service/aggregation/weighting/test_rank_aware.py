"""Weights by examples and rank."""

from __future__ import annotations

import torch
from support.builders import weights

from aggregator_service.aggregation.weighting.base import UpdateFacts, WeightingView
from aggregator_service.aggregation.weighting.examples import NumExamples
from aggregator_service.aggregation.weighting.rank_aware import RankAware


def view(*pairs):
    updates = tuple(
        UpdateFacts(worker=str(u), num_examples=n, rank=r) for u, (n, r) in enumerate(pairs)
    )
    return WeightingView(updates=updates, geometry=lambda: None)


def test_three_weights_worked_by_hand():
    # 10 * 2, 5 * 8 and 20 * 2 of 100.
    found = RankAware().weigh(view((10, 2), (5, 8), (20, 2))).values_U
    torch.testing.assert_close(found, weights(0.2, 0.4, 0.4))


def test_equal_ranks_are_the_data_weights_to_the_bit():
    cohort = view((3, 7), (1, 7), (5, 7))
    assert torch.equal(RankAware().weigh(cohort).values_U, NumExamples().weigh(cohort).values_U)


def test_it_says_how_far_it_is_from_the_data_weights():
    measured = RankAware().weigh(view((1, 1), (1, 3))).measurements
    assert measured == {"moved_from_data_weights": 0.25}
