from __future__ import annotations

import math

import pytest
import torch

from client_worker.training.objective import label_offsets, loss_sum


def test_the_offsets_are_the_logarithms_of_the_label_shares():
    offsets = label_offsets([3, 1], strength=1.0)
    assert offsets is not None
    torch.testing.assert_close(offsets, torch.tensor([math.log(0.75), math.log(0.25)]))
    half = label_offsets([3, 1], strength=0.5)
    torch.testing.assert_close(half, offsets / 2)


def test_without_strength_there_are_none():
    assert label_offsets([1, 1], strength=0.0) is None


def test_logits_that_know_nothing_have_no_loss_to_gain_from_the_frequencies():
    """With equal logits the adjusted prediction is the label's share: the gradient sums to 0."""
    targets = torch.tensor([0, 0, 0, 1])
    logits = torch.zeros(4, 2, requires_grad=True)
    loss_sum(logits, targets, label_offsets([3, 1], strength=1.0)).backward()
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(2), atol=1e-6, rtol=0)
    plain = torch.zeros(4, 2, requires_grad=True)
    loss_sum(plain, targets).backward()
    assert float(plain.grad.sum(0)[0]) == pytest.approx(-1.0)


@pytest.mark.parametrize("strength", [0.1, 1.0])
def test_a_label_the_worker_does_not_have_gets_no_gradient_at_all(strength):
    logits = torch.zeros(2, 3, requires_grad=True)
    offsets = label_offsets([1, 1, 0], strength=strength)
    loss_sum(logits, torch.tensor([0, 1]), offsets).backward()
    # Adam would make a full step of a gradient of 1e-6 as well as of 1.
    assert not logits.grad[:, 2].any()
    assert logits.grad[:, :2].all()
