"""FedAdagrad, FedAdam, FedYogi: Algorithm 2 entry by entry, and its limits."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.reference import EPS

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from aggregator_service.aggregation.server_optimizers.adaptive import (
    FedAdagrad,
    FedAdam,
    FedYogi,
)
from fedlora.errors import FedLoraError, Reason

ALL = [FedAdagrad, FedAdam, FedYogi]


def scalar_rounds(optimizer, changes):
    """Algorithm 2 on one number, with v_0 = 0, from 0; also v after every round."""
    x = m = v = 0.0
    b1, b2 = optimizer.beta1, getattr(optimizer, "beta2", None)
    seconds = []
    for d in changes:
        m = b1 * m + (1 - b1) * d
        if isinstance(optimizer, FedAdagrad):
            v = v + d * d
        elif isinstance(optimizer, FedAdam):
            v = b2 * v + (1 - b2) * d * d
        elif v < d * d:
            v = v + (1 - b2) * d * d
        elif v > d * d:
            v = v - (1 - b2) * d * d
        x += optimizer.learning_rate * m / (math.sqrt(v) + optimizer.tau)
        seconds.append(v)
    return x, seconds


def rounds(optimizer, changes, current):
    state, seconds = {}, []
    for change in changes:
        current, state = optimizer.step(current, current + change, state)
        seconds.append(state["v"])
    return current, seconds


def test_numbers_worked_by_hand():
    # D = 3, then 1; lr 1, beta1 0, beta2 3/4, tau 1/2.
    changes = [torch.tensor([3.0]).double(), torch.tensor([1.0]).double()]
    zero = torch.zeros(1).double()
    options = {"learning_rate": 1.0, "beta1": 0.0, "beta2": 0.75, "tau": 0.5}
    # adam: v = 9/4, 27/16 + 1/4 = 31/16; yogi: v = 9/4, 9/4 - 1/4 = 2; adagrad: v = 9, 10.
    x, v = rounds(FedAdam(**options), changes, zero)
    assert [s.item() for s in v] == [2.25, 1.9375]
    assert x.item() == pytest.approx(3 / 2 + 1 / (1.9375**0.5 + 0.5), rel=1e-14)
    x, v = rounds(FedYogi(**options), changes, zero)
    assert [s.item() for s in v] == [2.25, 2.0]
    assert x.item() == pytest.approx(3 / 2 + 1 / (2**0.5 + 0.5), rel=1e-14)
    del options["beta2"]
    x, v = rounds(FedAdagrad(**options), changes, zero)
    assert [s.item() for s in v] == [9.0, 10.0]
    assert x.item() == pytest.approx(3 / 3.5 + 1 / (10**0.5 + 0.5), rel=1e-14)


@pytest.mark.parametrize("made", ALL)
def test_twenty_rounds_are_algorithm_2_entry_by_entry(made):
    optimizer = made(learning_rate=0.05, beta1=0.7, tau=0.01)
    changes = [0.1 * normal(t, 5, 3) * 2.0 ** (t % 4) for t in range(20)]
    found, seconds = rounds(optimizer, changes, torch.zeros(5, 3).double())
    for i in range(5):
        for j in range(3):
            x, v = scalar_rounds(optimizer, [float(c[i, j]) for c in changes])
            # The test's D_t is read back from a sum: eps |x| / |D_t| per round.
            assert found[i, j].item() == pytest.approx(x, rel=1e-11, abs=1e-13)
            assert [s[i, j].item() for s in seconds] == pytest.approx(v, rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("made", [FedAdam, FedYogi])
def test_without_memory_a_step_is_the_rate_times_the_change_over_its_size(made):
    optimizer = made(learning_rate=0.01, beta1=0.0, beta2=0.0, tau=0.1)
    current, change = normal(0, 24, 17), normal(1, 24, 17)
    found, _ = optimizer.step(current, current + change, {})
    expected = current + 0.01 * change / (change.abs() + 0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("made", ALL)
def test_a_large_tau_with_an_equal_rate_tends_to_the_plain_mean(made):
    optimizer = made(learning_rate=1e8, beta1=0.0, tau=1e8)
    current, state = normal(0, 24, 17), {}
    for t in range(5):
        proposed = normal(t + 1, 24, 17)
        current, state = optimizer.step(current, proposed, state)
        # sqrt(v) / tau < 20 / 1e8, of changes below 10.
        torch.testing.assert_close(current, proposed, rtol=0, atol=2e-6)


def test_yogis_first_step_is_adams_bit_for_bit():
    current, proposed = normal(0, 24, 17), normal(1, 24, 17)
    adam, yogi = (made().step(current, proposed, {}) for made in (FedAdam, FedYogi))
    assert torch.equal(adam[0], yogi[0])
    assert torch.equal(adam[1]["v"], yogi[1]["v"])


def test_yogi_forgets_a_large_change_more_slowly_than_adam():
    changes = [torch.tensor([100.0]).double(), *[torch.tensor([0.1]).double()] * 50]
    (_, adam), (_, yogi) = (
        rounds(made(), changes, torch.zeros(1).double()) for made in (FedAdam, FedYogi)
    )
    assert adam[-1].item() < 0.7 * adam[0].item()
    assert yogi[-1].item() > 0.99 * yogi[0].item()


def test_adagrads_squares_never_fall():
    _, seconds = rounds(FedAdagrad(), [normal(t, 24, 17) for t in range(10)], normal(99, 24, 17))
    assert all(bool((b >= a).all()) for a, b in pairwise(seconds))


@pytest.mark.parametrize("made", [FedAdam, FedYogi])
def test_with_the_default_betas_a_first_step_is_the_rate(made):
    current = torch.zeros(24, 17).double()
    change = normal(1, 24, 17).sign()
    found, _ = made(learning_rate=0.01, tau=1e-9).step(current, change, {})
    torch.testing.assert_close(found, 0.01 * change, rtol=1e-7, atol=0)


@pytest.mark.parametrize("made", ALL)
def test_what_never_changes_never_moves(made):
    current = normal(0, 24, 17)
    found, seconds = rounds(made(), [torch.zeros(24, 17).double()] * 3, current)
    assert torch.equal(found, current)
    assert not seconds[-1].any()


@pytest.mark.parametrize("made", ALL)
def test_a_recipe_moves_both_factors_from_where_the_round_began(made):
    begin = start(seed=3)
    members, w = drifted(3, seed=3), weights(1, 2, 3)
    recipe, optimizer, state = compose(FedIT(), server_optimizer=made()), made(), {}
    held = {"a": {}, "b": {}}
    for round in (1, 2):
        cohort = ModuleCohort.of(
            members, w, start=GlobalModule(factors=begin), state=state, round=round
        )
        result = recipe.aggregate_module(cohort, rank=4)
        mean = compose(FedIT()).aggregate_module(cohort, rank=4).factors
        a, held["a"] = optimizer.step(begin.a_RK, mean.a_RK, held["a"])
        b, held["b"] = optimizer.step(begin.b_DR, mean.b_DR, held["b"])
        assert torch.equal(result.factors.a_RK, a)
        assert torch.equal(result.factors.b_DR, b)
        assert set(result.state) == {f"server_optimizer.{p}.{n}" for p in "ab" for n in "mv"}
        begin, state = result.factors, result.state


@pytest.mark.parametrize("made", ALL)
@pytest.mark.parametrize(
    "options",
    [
        {"learning_rate": 0.0},
        {"tau": 0.0},
        {"tau": float("inf")},
        {"beta1": 1.0},
        {"beta1": float("nan")},
    ],
)
def test_bad_options_are_refused(made, options):
    expected = f"{made.name}: expected learning_rate > 0 and tau > 0"
    with pytest.raises(FedLoraError, match=expected) as caught:
        made(**options)
    assert str(next(iter(options.values()))) in caught.value.message
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_a_bad_beta2_is_refused():
    for made in (FedAdam, FedYogi):
        with pytest.raises(FedLoraError, match=r"got 0.001, 0.001 and 0.9, 1.0"):
            made(beta2=1.0)
