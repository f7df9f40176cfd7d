from __future__ import annotations

import pytest
import torch
from support.plugin_rounds import descend, random_tensors, seen

from fedlora.errors import FedLoraError
from fedlora.plugins import LocalHooks
from fedlora.plugins.ditto import Ditto

TARGET = random_tensors(9)


def loss(tensors) -> torch.Tensor:
    return sum(0.5 * (t - TARGET[n]).square().sum() for n, t in tensors.items())


def own_after(lam: float, *, steps: int = 3, rate: float = 0.1):
    """v after a round from v = theta_g + something, and theta_g."""
    given, own = random_tensors(0), random_tensors(1)
    trained = {n: t.clone().requires_grad_() for n, t in own.items()}
    round = seen(trained, given, rate=rate, head_rate=rate)
    descend(round, Ditto(lam=lam).personal(round), loss, steps=steps)
    return {n: t.detach() for n, t in trained.items()}, given


def test_a_step_is_the_papers():
    moved, given = own_after(0.7, steps=1)
    own = random_tensors(1)
    for name, tensor in moved.items():
        gradient = own[name] - TARGET[name]
        expected = own[name] - 0.1 * (gradient + 0.7 * (own[name] - given[name]))
        assert torch.allclose(tensor, expected, rtol=1e-12, atol=1e-12)


def test_without_a_pull_it_is_training_on_the_workers_data_alone():
    trained = {n: t.clone().requires_grad_() for n, t in random_tensors(1).items()}
    descend(seen(trained, random_tensors(0)), LocalHooks(), loss, steps=3)
    moved, _ = own_after(0.0)
    assert all(torch.equal(moved[n], t) for n, t in trained.items())


def test_a_pull_far_stronger_than_the_loss_ends_at_the_global_adapter():
    # v* = (target + lam theta_g) / (1 + lam), and rate (1 + lam) = 0.5 gets there.
    moved, given = own_after(1e4, steps=60, rate=0.5 / (1 + 1e4))
    assert max(float((moved[n] - given[n]).abs().max()) for n in moved) < 1e-3


def test_it_leaves_the_rounds_own_training_alone():
    assert Ditto(lam=5.0).local(seen({}, {})) == LocalHooks()


def test_a_pull_that_is_none_is_refused():
    with pytest.raises(FedLoraError, match=r"plugins\.ditto\.lam: .* got -0\.5"):
        Ditto(lam=-0.5)
