from __future__ import annotations

import math

import pytest
import torch
from support.plugin_rounds import random_tensors, seen

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.fedlc import FedLC

COUNTS = (7, 0, 40, 1)


def criterion(counts: tuple[int, ...], tau: float = 1.0):
    tensors = random_tensors(0)
    return FedLC(tau=tau).local(seen(tensors, tensors, class_counts=counts)).criterion


def by_the_book(logits, targets, counts, tau: float) -> tuple[float, list[list[float]]]:
    """The sum of losses and its gradient, number by number."""
    total, gradients = 0.0, []
    for row, target in zip(logits, targets, strict=True):
        shifted = [z - tau / max(n, 1e-8) ** 0.25 for z, n in zip(row, counts, strict=True)]
        highest = max(shifted)
        shares = [math.exp(z - highest) for z in shifted]
        total += highest + math.log(math.fsum(shares)) - shifted[target]
        parts = [share / math.fsum(shares) for share in shares]
        gradients.append([p - (j == target) for j, p in enumerate(parts)])
    return total, gradients


def test_two_classes_worked_by_hand():
    # 1 and 16 examples: offsets 1 and 1/2. Of equal logits the rare class has the loss
    # log(1 + e^(1/2)) = 0.974077, the other one log(1 + e^(-1/2)) = 0.474077.
    logits = torch.zeros(2, 2)
    found = criterion((1, 16))(logits, torch.tensor([0, 1]))
    assert float(found) == pytest.approx(0.974077 + 0.474077, abs=2e-6)
    assert float(criterion((1, 16))(logits[:1], torch.tensor([0]))) > math.log(2)


@pytest.mark.parametrize("tau", [0.05, 1.0, 3.0])
def test_loss_and_gradient_are_those_of_the_formula(tau: float):
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(9, 4, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 2, 3, 0, 2, 2, 0, 2, 3])
    expected, gradients = by_the_book(logits.tolist(), targets.tolist(), COUNTS, tau)
    logits.requires_grad_()
    found = criterion(COUNTS, tau)(logits, targets)
    found.backward()
    assert found.item() == pytest.approx(expected, rel=1e-13)
    assert torch.allclose(logits.grad, torch.tensor(gradients, dtype=torch.float64), atol=1e-14)


def test_the_parts_of_a_step_add_up_to_the_whole():
    logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    targets = torch.arange(9) % 4
    loss = criterion((1, 2, 3, 4))
    parts = sum(float(loss(logits[i : i + 2], targets[i : i + 2])) for i in range(0, 9, 2))
    assert parts == pytest.approx(float(loss(logits, targets)), rel=1e-14)


def test_equal_counts_are_cross_entropy():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 2, 1])
    plain = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    assert float(criterion((9, 9, 9))(logits, targets)) == pytest.approx(float(plain), rel=1e-14)


def test_a_class_that_is_not_there_has_next_to_no_gradient_and_no_infinite_loss():
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = criterion((3, 0, 2))
    loss(logits, torch.tensor([0])).backward()
    assert float(logits.grad[0, 1].abs()) < 1e-40
    assert float(logits.grad[0, 0].abs()) > 0.1
    # Such a target is in nobody's training data; scored by this loss it would cost 100 tau.
    assert float(loss(logits, torch.tensor([1])).detach()) == pytest.approx(100, rel=0.02)


def test_more_examples_of_every_class_calibrate_less():
    # Offsets of 16 times the counts are half as large; a logarithm of shares would not change.
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(5))
    targets = torch.tensor([0, 1, 1, 0])
    more, half = criterion((16, 160), tau=1.0), criterion((1, 10), tau=0.5)
    assert float(more(logits, targets)) == pytest.approx(float(half(logits, targets)), rel=1e-6)


def test_without_strength_there_is_no_criterion():
    tensors = random_tensors(0)
    assert FedLC(tau=0.0).local(seen(tensors, tensors)).criterion is None
    assert not FedLC(tau=0.0).traits.replaces_criterion
    assert FedLC().traits.replaces_criterion


@pytest.mark.parametrize("tau", [-1.0, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_refused(tau: float):
    with pytest.raises(FedLoraError, match=r"plugins\.fedlc\.tau") as caught:
        FedLC(tau=tau)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
