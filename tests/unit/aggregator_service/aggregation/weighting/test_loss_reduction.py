"""Lorar's weights: examples times the reduction of the loss, and what happens without one."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, weights
from support.reference import EPS
from support.views import facts_view

from aggregator_service.aggregation.weighting.examples import NumExamples
from aggregator_service.aggregation.weighting.loss_reduction import LossReduction
from fedlora.errors import FedLoraError

EXAMPLES = [10, 20, 30]
NAN, INF = float("nan"), float("inf")


def weigh(reductions, examples=EXAMPLES):
    return LossReduction().weigh(facts_view(examples, loss_reduction=reductions))


def data():
    return NumExamples().weigh(facts_view(EXAMPLES)).values_U


def test_numbers_worked_by_hand():
    # n l = 10, 60, 30.
    found = weigh([1.0, 3.0, 1.0])
    torch.testing.assert_close(found.values_U, weights(0.1, 0.6, 0.3), rtol=4 * EPS, atol=0)
    # From 1/6, 1/3, 1/2: 4/15 went to the second.
    moved = found.measurements["moved_from_data_weights"]
    assert moved == pytest.approx(4 / 15, rel=1e-14)


def test_weights_are_those_of_the_definition():
    for seed in range(10):
        l_u, n_u = normal(seed, 6).abs(), (100 * normal(seed + 50, 6).abs()).ceil()
        found = weigh(l_u.tolist(), n_u.tolist()).values_U
        torch.testing.assert_close(found, n_u * l_u / (n_u * l_u).sum(), rtol=20 * EPS, atol=0)


@pytest.mark.parametrize("reduction", [0.3, 1e-300, 1e300])
def test_equal_reductions_give_the_data_weights_bit_for_bit(reduction):
    assert torch.equal(weigh([reduction] * 3).values_U, data())


@pytest.mark.parametrize(
    "reductions", [[0.0] * 3, [-1.0, -0.5, 0.0], [NAN, 1.0, 2.0], [INF, 1.0, 2.0]]
)
def test_without_usable_reductions_the_weights_are_the_data_weights(reductions):
    assert torch.equal(weigh(reductions).values_U, data())


def test_a_loss_that_rose_counts_as_no_reduction():
    found = weigh([-5.0, 1.0, 1.0]).values_U
    torch.testing.assert_close(found, weights(0, 0.4, 0.6), rtol=4 * EPS, atol=0)


def test_only_ratios_of_reductions_count():
    found, other = weigh([1.0, 3.0, 2.0]).values_U, weigh([1e200, 3e200, 2e200]).values_U
    torch.testing.assert_close(other, found, rtol=4 * EPS, atol=0)


def test_updates_without_examples_are_refused():
    with pytest.raises(FedLoraError, match="none of the 3 updates has a positive weight"):
        weigh([1.0, 2.0, 3.0], [0, 0, 0])
