from __future__ import annotations

import math

import pytest
import torch
from support.plugin_rounds import descend, random_tensors, seen

from fedlora.errors import FedLoraError
from fedlora.plugins.fednova import FedNova
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.proximal import Space
from fedlora.runs.training import OptimizerName

GRADIENT = random_tensors(4)


def steady(tensors) -> torch.Tensor:
    """A loss with one gradient everywhere."""
    return sum((t * GRADIENT[n]).sum() for n, t in tensors.items())


def length(steps: int, *, plugins=(), shares=lambda _: 1.0, rate: float = 0.1, **training) -> float:
    """The a_u that the plug-in reports of a round."""
    given = random_tensors(0)
    trained = {n: t.clone().requires_grad_() for n, t in given.items()}
    round = seen(trained, given, plugins=plugins, rate=rate, head_rate=rate, **training)
    hooks = FedNova().local(round)
    descend(round, hooks, steady, steps=steps, shares=shares)
    return hooks.end().metrics["fednova_a"]


def told(*lengths: float) -> list[dict[str, float]]:
    return [{"fednova_a": a} for a in lengths]


@pytest.mark.parametrize("steps", [1, 7])
def test_of_plain_steps_it_is_their_number(steps):
    assert length(steps) == steps
    assert length(steps, optimizer=OptimizerName.ADAMW) == steps


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_with_momentum_it_is_the_papers_closed_form(rho):
    steps = 6
    expected = (steps - rho * (1 - rho**steps) / (1 - rho)) / (1 - rho)
    assert length(steps, momentum=rho) == pytest.approx(expected, rel=1e-12)


def test_with_a_pull_every_step_shortens_what_was_gone():
    expected = sum((1 - 0.1 * 2.0) ** k for k in range(5))
    assert length(5, plugins=(FedProx(mu=2.0),)) == pytest.approx(expected, rel=1e-12)
    # Between products the pull is not the same for every number, and AdamW scales it away.
    assert length(5, plugins=(FedProx(mu=2.0, space=Space.PRODUCT),)) == 5
    assert length(5, plugins=(FedProx(mu=2.0),), optimizer=OptimizerName.ADAMW) == 5


def test_it_is_how_far_a_steady_gradient_goes_with_momentum_pull_and_warm_up_together():
    given = random_tensors(0)
    trained = {n: t.clone().requires_grad_() for n, t in given.items()}
    prox = FedProx(mu=1.5)
    round = seen(trained, given, plugins=(prox,), momentum=0.8)

    def loss(tensors) -> torch.Tensor:
        return steady(tensors) + prox.local(round).penalty()

    def shares(step: int) -> float:
        return min(1.0, (step + 1) / 4)

    hooks = FedNova().local(round)
    descend(round, hooks, loss, steps=6, shares=shares)
    a = hooks.end().metrics["fednova_a"]
    for name, tensor in trained.items():
        gone = -(tensor.detach() - given[name]) / 0.1
        assert torch.allclose(gone, a * GRADIENT[name], rtol=1e-12, atol=1e-12)


def test_equal_lengths_leave_every_update_as_it_is():
    assert FedNova().shares(told(7.0, 7.0, 7.0), (0.2, 0.3, 0.5), ()) is None


def test_shares_are_the_mean_length_over_each():
    weights = (0.25, 0.75)
    assert FedNova().shares(told(2.0, 6.0), weights, ()) == (5.0 / 2.0, 5.0 / 6.0)


def test_a_claim_counts_as_no_more_than_the_ratio_to_the_median():
    shares = FedNova(max_ratio=10.0).shares(told(1.0, 1.0, 1e12), (1 / 3,) * 3, ())
    assert shares == pytest.approx((4.0, 4.0, 0.4))
    assert FedNova(max_ratio=1.0).shares(told(1.0, 5.0, 9.0), (1 / 3,) * 3, ()) is None
    small = FedNova(max_ratio=10.0).shares(told(1.0, 1.0, -3.0), (1 / 3,) * 3, ())
    assert all(math.isfinite(share) for share in small)
    assert small[2] == pytest.approx(7.0)


@pytest.mark.parametrize("stuck", [0.0, -1e9])
def test_a_worker_that_has_gone_nowhere_stops_nobody(stuck):
    assert FedNova().shares(told(stuck), (1.0,), ()) is None
    shares = FedNova(max_ratio=10.0).shares(told(stuck, stuck, 2.0, 4.0), (0.25,) * 4, ())
    lengths = (0.2, 0.2, 2.0, 4.0)
    assert shares == pytest.approx([sum(lengths) / 4 / a for a in lengths])


def test_a_ratio_that_cannot_be_is_refused():
    with pytest.raises(FedLoraError, match=r"plugins\.fednova\.max_ratio: .* got 0\.5"):
        FedNova(max_ratio=0.5)
