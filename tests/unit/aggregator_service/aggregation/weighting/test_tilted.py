"""Tilted weights: the gradient of the tilted loss, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import normal, weights
from support.reference import EPS
from support.views import facts_view

from aggregator_service.aggregation.weighting.examples import NumExamples
from aggregator_service.aggregation.weighting.tilted import Tilted
from fedlora.errors import FedLoraError, Reason

EXAMPLES = [10, 20, 30]


def weigh(tilt, losses, examples=EXAMPLES):
    return Tilted(tilt=tilt).weigh(facts_view(examples, loss_at_start=losses)).values_U


def data():
    return NumExamples().weigh(facts_view(EXAMPLES)).values_U


def test_numbers_worked_by_hand():
    # exp(2 F) = 1, 3, 1 with n = 10, 20, 30: 10, 60, 30.
    found = weigh(2.0, [0.0, math.log(3) / 2, 0.0])
    torch.testing.assert_close(found, weights(0.1, 0.6, 0.3), rtol=10 * EPS, atol=0)


@pytest.mark.parametrize("tilt", [-3.0, -0.5, 0.5, 3.0])
def test_weights_are_the_gradient_of_the_tilted_loss(tilt):
    losses = normal(3, 6).requires_grad_()
    n = torch.tensor([1, 2, 3, 4, 5, 6]).double()
    tilted = ((n / n.sum()) * (tilt * losses).exp()).sum().log() / tilt
    (gradient,) = torch.autograd.grad(tilted, losses)
    found = weigh(tilt, losses.tolist(), n.tolist())
    torch.testing.assert_close(found, gradient, rtol=100 * EPS, atol=0)


def test_without_a_tilt_the_weights_are_the_data_weights_bit_for_bit():
    assert torch.equal(weigh(0.0, [3.0, 0.1, 700.0]), data())


def test_equal_losses_give_the_data_weights_bit_for_bit():
    assert torch.equal(weigh(5.0, [1.7] * 3), data())


def test_a_strong_tilt_leaves_the_largest_or_the_smallest_loss():
    losses = [2.0, 3.0, 1.0]
    assert weigh(1e6, losses).tolist() == [0, 1, 0]
    assert weigh(-1e6, losses).tolist() == [0, 0, 1]


def test_only_differences_of_losses_count():
    found, other = weigh(1.0, [0.0, 1.0, 2.0]), weigh(1.0, [4096.0, 4097.0, 4098.0])
    assert torch.equal(found, other)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_give_the_data_weights(loss):
    assert torch.equal(weigh(1.0, [1.0, loss, 2.0]), data())


@pytest.mark.parametrize("tilt", [float("nan"), float("inf")])
def test_a_tilt_that_is_not_finite_is_refused(tilt):
    with pytest.raises(FedLoraError, match=f"expected a finite tilt, got {tilt}") as caught:
        Tilted(tilt=tilt)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
