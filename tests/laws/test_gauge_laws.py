"""Laws of every method in every gauge that it takes: the product is the method's own.

Tolerances are those of `test_aggregator_laws`; a published adapter is compared to a few roundings
of its type.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from support.builders import drifted, start, unrelated, weights
from support.recipes import admissible, change, combine
from support.reference import relative_error

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.composition import compose, gauges_of
from aggregator_service.aggregation.gauge import NEAREST
from aggregator_service.aggregation.registry import METHODS, create_recipe
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import Gauge, MethodSpec

CHOSEN = [gauge for gauge in Gauge if gauge is not Gauge.OWN]
PAIRS = list(itertools.product(sorted(METHODS), CHOSEN))
TAKEN = [(name, gauge) for name, gauge in PAIRS if gauge in gauges_of(METHODS[name])]

every_pair = pytest.mark.parametrize(("name", "gauge"), PAIRS)
every_taken_pair = pytest.mark.parametrize(("name", "gauge"), TAKEN)


def run(name, gauge, cohort, w, *, seed=0, dtype=torch.float64):
    context = admissible(METHODS[name], cohort, origin=start())
    members = context.pop("members")
    publication = Publication(dtype=dtype, scaling=2.0)
    recipe = compose(METHODS[name], gauge=gauge)
    return combine(recipe, members, w, seed=seed, publication=publication, **context)


@every_taken_pair
def test_a_gauge_leaves_the_product_as_it_is(name, gauge):
    cohort, w = drifted(4), weights(1, 2, 3, 4)
    own, chosen = (run(name, g, cohort, w) for g in (Gauge.OWN, gauge))
    assert relative_error(change(chosen), change(own)) < 1e-9
    assert chosen.factors.a_RK.shape == own.factors.a_RK.shape
    assert chosen.factors.b_DR.shape == own.factors.b_DR.shape
    assert chosen.factors.dtype == torch.float64


@every_taken_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_published_is_the_product_to_its_rounding(name, gauge, dtype):
    cohort, w = drifted(4), weights(1, 2, 3, 4)
    exact = run(name, gauge, cohort, w)
    read = Publication(dtype=dtype, scaling=2.0).read_back(exact.factors)
    # Each factor is rounded by half an eps of its own size, and their sizes multiply.
    sizes = float(exact.factors.a_RK.norm() * exact.factors.b_DR.norm())
    error = float((read.delta_weight() - change(exact)).norm())
    assert error < torch.finfo(dtype).eps * sizes


@every_taken_pair
def test_equal_seeds_give_equal_bits_in_every_gauge(name, gauge):
    cohort, w = unrelated([4] * 4), weights(4, 3, 2, 1)
    first, second = (run(name, gauge, cohort, w, seed=5) for _ in range(2))
    assert torch.equal(first.factors.a_RK, second.factors.a_RK)
    assert torch.equal(first.factors.b_DR, second.factors.b_DR)


@every_taken_pair
def test_the_order_of_clients_changes_neither_product_nor_factors(name, gauge):
    cohort, w = drifted(5), weights(1, 2, 3, 4, 5)
    order = [3, 0, 4, 2, 1]
    straight = run(name, gauge, cohort, w).factors
    shuffled = run(name, gauge, [cohort[i] for i in order], w[order]).factors
    for one, other in ((straight.a_RK, shuffled.a_RK), (straight.b_DR, shuffled.b_DR)):
        # `auto` may take another of two equally good answers.
        assert relative_error(other, one) < (0.05 if name == "auto" else 1e-6)


@every_taken_pair
def test_a_zero_update_can_still_learn_in_every_gauge(name, gauge):
    first = start()
    cohort = [LoraFactors(first.a_RK, torch.zeros_like(first.b_DR))] * 3
    result = run(name, gauge, cohort, weights(1, 1, 1)).factors
    assert not result.b_DR.any()
    assert bool((result.a_RK.norm(dim=1) > 0.1).all())


@every_pair
def test_a_gauge_is_taken_or_refused_with_a_reason_before_a_run_begins(name, gauge):
    if (name, gauge) in TAKEN:
        promised = compose(METHODS[name], gauge=gauge).properties
        own = compose(METHODS[name]).properties
        assert promised == replace(own, keeps_basis=gauge in NEAREST)
        return
    with pytest.raises(FedLoraError, match=f"cannot publish in the gauge {gauge.value}") as caught:
        create_recipe(MethodSpec(name=name, gauge=gauge))
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert 'gauge = "own"' in caught.value.hint


def test_who_takes_which_gauge():
    def takers(gauge):
        return {name for name, g in TAKEN if g is gauge}

    assert {"fedit", "flora_na", "optimal", "lora_fair", "fedhl", "flexlora"} <= takers(
        Gauge.BALANCED
    )
    assert takers(Gauge.BALANCED) - takers(Gauge.CLOSEST_A) == {"fedhl", "flexlora", "florist"}
    frozen = {n for n, m in METHODS.items() if any(Part.A not in p.trained for p in m.plans)}
    based = {n for n, m in METHODS.items() if compose(m).properties.changes_base}
    assert frozen
    assert based
    assert not (frozen | based) & takers(Gauge.BALANCED)


@every_taken_pair
def test_plans_say_that_components_last_in_the_gauges_in_which_they_do(name, gauge):
    recipe = compose(METHODS[name], gauge=gauge)
    assert all(plan.keeps_basis == (gauge in NEAREST) for plan in recipe.plans())
