"""FedAvgM: both conventions, and the plain mean where there is no momentum."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.reference import EPS

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.server_optimizers.momentum import Momentum
from fedlora.errors import FedLoraError, Reason


def rounds(optimizer, current, changes):
    """Where a sequence of changes D_t leads."""
    state = {}
    for change in changes:
        current, state = optimizer.step(current, current + change, state)
    return current


def test_numbers_worked_by_hand():
    # From 1 with D = 2, 2: v = 2, then .5 * 2 + 2 = 3; x = 1 + 2 + 3 = 6.
    two = torch.tensor([2.0]).double()
    begin = torch.tensor([1.0]).double()
    assert rounds(Momentum(beta=0.5), begin, [two, two]).item() == 6.0
    # Dampened, v = 2, then .5 * 2 + .5 * 2 = 2; x = 1 + 2 + 2. Half the rate: 1 + 1 + 1.5.
    assert rounds(Momentum(beta=0.5, dampening=0.5), begin, [two, two]).item() == 5.0
    assert rounds(Momentum(beta=0.5, learning_rate=0.5), begin, [two, two]).item() == 3.5


@pytest.mark.parametrize("dampening", [0.0, 0.9])
def test_the_velocity_is_that_of_torch_sgd(dampening):
    parameter = normal(0, 24, 17).requires_grad_()
    reference = torch.optim.SGD([parameter], lr=0.3, momentum=0.9, dampening=dampening)
    optimizer = Momentum(learning_rate=0.3, beta=0.9, dampening=dampening)
    current, state = parameter.detach().clone(), {}
    for t in range(10):
        change = normal(1 + t, 24, 17)
        parameter.grad = -change
        reference.step()
        current, state = optimizer.step(current, current + change, state)
    # Ten sums of numbers below 100.
    torch.testing.assert_close(current, parameter.detach(), rtol=0, atol=1e4 * EPS)


def test_without_momentum_it_is_the_plain_mean_bit_for_bit():
    optimizer = Momentum(beta=0.0)
    current, state = normal(0, 24, 17), {}
    for t in range(20):
        proposed = normal(t + 1, 24, 17) * 10.0 ** (t - 10)
        current, state = optimizer.step(current, proposed, state)
        assert torch.equal(current, proposed)


def test_the_first_step_is_the_plain_mean_whatever_the_momentum():
    current, proposed = normal(0, 24, 17), normal(1, 24, 17)
    for optimizer in (Momentum(), Momentum(beta=0.5, dampening=0.5)):
        assert torch.equal(optimizer.step(current, proposed, {})[0], proposed)


def test_the_conventions_differ_by_1_over_1_minus_beta_in_the_long_run():
    change, zero = torch.tensor([1.0]).double(), torch.zeros(1).double()
    heavy, mean = Momentum(beta=0.9), Momentum(beta=0.9, dampening=0.9)
    last = [
        rounds(optimizer, zero, [change] * 400) - rounds(optimizer, zero, [change] * 399)
        for optimizer in (heavy, mean)
    ]
    # 0.9^399 is below 1e-18; sums near 4000.
    assert last[0].item() == pytest.approx(10, abs=1e4 * EPS)
    assert last[1].item() == pytest.approx(1, abs=1e4 * EPS)


def test_where_nothing_changes_the_adapter_runs_on_and_stops():
    zero = torch.zeros(1).double()
    pushes = [torch.ones(1).double(), *[zero] * 400]
    # 1 + beta + beta^2 + .. = 2.
    assert rounds(Momentum(beta=0.5), zero, pushes).item() == pytest.approx(2, abs=10 * EPS)


def test_a_recipe_without_momentum_is_the_method_alone_bit_for_bit():
    begin = GlobalModule(factors=start(seed=3).to(torch.float32))
    cohort = ModuleCohort.of(
        [f.to(torch.float32) for f in drifted(3)], weights(1, 2, 3), start=begin
    )
    plain = compose(FedIT()).aggregate_module(cohort, rank=4)
    found = compose(FedIT(), server_optimizer=Momentum(beta=0.0)).aggregate_module(cohort, rank=4)
    assert torch.equal(found.factors.a_RK, plain.factors.a_RK)
    assert torch.equal(found.factors.b_DR, plain.factors.b_DR)
    assert {name: v.dtype for name, v in found.state.items()} == {
        "server_optimizer.a.v": torch.float64,
        "server_optimizer.b.v": torch.float64,
    }


def test_a_method_that_changes_the_basis_is_refused():
    with pytest.raises(FedLoraError, match="fedavgm remembers directions of A and B") as caught:
        compose(Optimal(), server_optimizer=Momentum())
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"learning_rate": 0.0}, "got 0.0, 0.9 and 0.0"),
        ({"beta": 1.0}, "got 1.0, 1.0 and 0.0"),
        ({"beta": -0.1}, "got 1.0, -0.1 and 0.0"),
        ({"dampening": 1.0}, "got 1.0, 0.9 and 1.0"),
        ({"learning_rate": float("nan")}, "got nan, 0.9 and 0.0"),
    ],
)
def test_bad_options_are_refused(options, got):
    with pytest.raises(FedLoraError, match=got) as caught:
        Momentum(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
