from __future__ import annotations

import pytest
import torch
from torch import nn

from client_worker.adaptation.polar import direction_stand_ins, magnitude_stand_ins


def factor(seed=0, shape=(4, 7)):
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter(torch.randn(shape, generator=generator))


def loss(x):
    weights = torch.arange(1.0, x.numel() + 1).view_as(x)
    return (weights * x**2).sum()


def stepped(stand_ins, tensor, *, rate=0.05, steps=3):
    """Some steps of gradient descent, as a training loop makes them."""
    for _ in range(steps):
        loss(tensor).backward()
        stand_ins.pull()
        assert tensor.grad is None
        with torch.no_grad():
            for trained in stand_ins.trained.values():
                trained -= rate * trained.grad
                trained.grad = None
        stand_ins.push()


@pytest.mark.parametrize("dim", [0, 1])
def test_directions_turn_and_their_lengths_stay(dim):
    tensor = factor()
    before = tensor.detach().clone()
    stepped(direction_stand_ins({"m": tensor}, dim=dim), tensor)
    torch.testing.assert_close(tensor.norm(dim=dim), before.norm(dim=dim))
    cosines = torch.cosine_similarity(tensor, before, dim=dim)
    assert cosines.max() < 1 - 1e-4
    assert loss(tensor) < loss(before)


@pytest.mark.parametrize("dim", [0, 1])
def test_magnitudes_change_and_their_directions_stay(dim):
    tensor = factor()
    before = tensor.detach().clone()
    stand_ins = magnitude_stand_ins({"m": tensor}, None, dim=dim)
    assert torch.allclose(tensor, before)
    stepped(stand_ins, tensor, rate=1e-3)
    torch.testing.assert_close(
        nn.functional.normalize(tensor, dim=dim), nn.functional.normalize(before, dim=dim)
    )
    (b,) = stand_ins.trained.values()
    torch.testing.assert_close(tensor.norm(dim=dim), b.abs())
    assert (b - before.norm(dim=dim)).abs().min() > 1e-4


def test_the_gradient_of_a_direction_is_the_part_across_it():
    # x = m v/|v| with m = 2 and v = (2, 0): of the gradient (3, 5) only 5 turns it, times m / |v|.
    tensor = nn.Parameter(torch.tensor([[2.0, 0.0]]))
    stand_ins = direction_stand_ins({"m": tensor}, dim=1)
    tensor.grad = torch.tensor([[3.0, 5.0]])
    stand_ins.pull()
    assert stand_ins.trained["m"].grad.tolist() == [[0.0, 5.0]]


def test_the_gradient_of_a_magnitude_is_the_part_along_its_direction():
    tensor = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    stand_ins = magnitude_stand_ins({"m": tensor}, None, dim=1)
    tensor.grad = torch.tensor([[1.0, 2.0]])
    stand_ins.pull()
    # (3, 4) / 5 . (1, 2)
    torch.testing.assert_close(stand_ins.trained["m"].grad, torch.tensor([2.2]))


def test_own_magnitudes_are_put_in_at_once():
    tensor = factor()
    units = nn.functional.normalize(tensor.detach(), dim=0)
    own = torch.arange(1.0, 8.0)
    stand_ins = magnitude_stand_ins({"m": tensor}, {"m": own}, dim=0)
    torch.testing.assert_close(tensor.detach(), own * units)
    assert torch.equal(stand_ins.trained["m"], own)


def test_a_vector_without_a_direction_stays_as_it_is():
    for make in (
        lambda t: direction_stand_ins({"m": t}, dim=1),
        lambda t: magnitude_stand_ins({"m": t}, {"m": torch.full((4,), 2.0)}, dim=1),
    ):
        tensor = factor()
        tensor.data[2] = 0
        stand_ins = make(tensor)
        for _ in range(2):
            tensor.grad = torch.ones_like(tensor)
            stand_ins.pull()
            assert all(p.grad.isfinite().all() for p in stand_ins.trained.values())
            assert all(p.grad[2].eq(0).all() for p in stand_ins.trained.values())
            stand_ins.push()
        assert not tensor[2].any()


def test_a_layer_without_a_gradient_is_passed_over():
    stand_ins = direction_stand_ins({"m": factor()}, dim=1)
    stand_ins.pull()
    assert stand_ins.trained["m"].grad is None
