from __future__ import annotations

import math

import pytest
import torch

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.registry import METHODS
from aggregator_service.aggregation.weighting.base import UpdateFacts
from fedlora.errors import FedLoraError
from fedlora.plugins import Plugin
from fedlora.plugins.fednova import FedNova
from fedlora.plugins.norm_bound import NormBound


def shares(plugin: NormBound, *norms: float) -> tuple[float, ...] | None:
    return plugin.shares([{}] * len(norms), [1 / len(norms)] * len(norms), norms)


def test_by_hand_what_goes_beyond_twice_the_median_is_cut_to_it():
    assert shares(NormBound(max_ratio=2.0), 1.0, 3.0, 2.0, 100.0, 4.5) == (1, 1, 1, 0.06, 1)


def test_the_smaller_of_two_bounds_counts():
    assert shares(NormBound(max_ratio=2.0, max_norm=2.5), 1.0, 2.0, 5.0) == (1, 1, 0.5)
    assert shares(NormBound(max_ratio=2.0, max_norm=1e9), 1.0, 2.0, 5.0) == (1, 1, 0.8)
    assert shares(NormBound(max_ratio=0.0, max_norm=2.5), 1.0, 2.0, 5.0) == (1, 1, 0.5)


def test_of_two_the_smaller_is_the_median():
    assert shares(NormBound(max_ratio=3.0), 1.0, 30.0) == (1, 0.1)


def test_a_cohort_within_the_bound_is_left_alone():
    assert shares(NormBound(), 1.0, 1.5, 2.0) is None
    assert shares(NormBound(), 0.0, 0.0, 0.0) is None


@pytest.mark.parametrize("num_hostile", [1, 2, 3, 4])
def test_while_most_are_honest_nobody_goes_farther_than_the_ratio_times_an_honest_one(
    num_hostile: int,
):
    generator = torch.Generator().manual_seed(num_hostile)
    for _ in range(200):
        honest = torch.rand(num_hostile + 1, generator=generator, dtype=torch.float64) + 0.01
        # Anything, from far below to far beyond what honest workers send.
        hostile = torch.randn(num_hostile, generator=generator, dtype=torch.float64).exp() ** 8
        norms = torch.cat([hostile, honest]).tolist()
        found = shares(NormBound(max_ratio=2.0), *norms) or (1.0,) * len(norms)
        counted = [n * c for n, c in zip(norms, found, strict=True)]
        assert max(counted) <= 2.0 * float(honest.max()) * (1 + 1e-12)


def told(a: float) -> UpdateFacts:
    return UpdateFacts(worker=f"w{a}", num_examples=1.0, rank=4, metrics={"fednova_a": a})


def product(*plugins: Plugin) -> tuple[float, ...] | None:
    recipe = compose(METHODS["fedit"], plugins=plugins)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    return recipe.shares([told(1.0), told(2.0), told(4.0)], weights, lambda: (1.0, 1.0, 1.0))


@pytest.mark.parametrize("order", [1, -1])
def test_what_another_plug_in_stretches_is_bounded_as_stretched(order: int):
    stretched = product(FedNova())
    assert stretched == pytest.approx((7 / 3, 7 / 6, 7 / 12))
    bounded = product(*(FedNova(), NormBound(max_ratio=1.5))[::order])
    assert bounded == pytest.approx((1.5 * 7 / 6, 7 / 6, 7 / 12))


def test_norms_are_measured_only_where_somebody_goes_by_them():
    def fail() -> tuple[float, ...]:
        raise AssertionError("measured")

    off = NormBound(max_ratio=0.0)
    for plugins in ((), (FedNova(),), (off,)):
        recipe = compose(METHODS["fedit"], plugins=plugins)
        recipe.shares([told(1.0)], torch.ones(1, dtype=torch.float64), fail)
    assert off.traits == type(off.traits)()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_norm": -1.0}, r"max_norm: .* got -1"),
        ({"max_norm": math.nan}, r"max_norm: .* got nan"),
        ({"max_ratio": math.inf}, r"max_ratio: .* got inf"),
        ({"max_ratio": 0.5}, r"max_ratio: expected at least 1, got 0.5"),
    ],
)
def test_a_bound_that_is_none_is_refused(options: dict[str, float], named: str):
    with pytest.raises(FedLoraError, match=rf"plugins\.norm_bound\.{named}"):
        NormBound(**options)
