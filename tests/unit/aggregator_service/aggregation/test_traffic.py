"""The formulas of what crosses the wire; test_method_federations.py measures it."""

from __future__ import annotations

import pytest
from support.traffic import evaluate

from aggregator_service.aggregation.methods.fedlora_optimizer import FedLoRAOptimizer, Order
from aggregator_service.aggregation.registry import METHODS
from aggregator_service.aggregation.traffic import traffic_of


@pytest.mark.parametrize(
    ("name", "up", "down"),
    [
        ("fedit", "r(d+k)", "r(d+k)"),
        ("fed_sb", "r^2", "r^2"),
        ("rolora", "rd, then rk", "rd, then rk"),
        ("lora_a2", "md + r, then mk + r", "rd, then rk"),
        ("aflora", "md + r", "rd, rk more after a server's stage"),
        ("bound_weights", "r(d+k), 2 more per update", "r(d+k)"),
        ("flora", "r(d+k)", "r(d+k) + min(tR, d, k)(d+k)"),
        ("rac_lora", "rd", "r(d+k) + min(tr, d, k)(d+k)"),
    ],
)
def test_the_texts_are_made_of_the_plans(name, up, down):
    traffic = traffic_of(METHODS[name])
    assert (traffic.up_text, traffic.down_text) == (up, down)


def test_a_stage_that_works_beside_the_adapter_is_fetched_twice():
    assert traffic_of(FedLoRAOptimizer()).refined == ()
    assert traffic_of(FedLoRAOptimizer(order=Order.PARALLEL)).refined == ("rk",)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("rd", 4 * 20),
        ("r^2", 16),
        ("md + r", 3 * 20 + 4),
        ("r(d+k) + min(t(U-1)r, d, k)(d+k)", 4 * 32 + 2 * 4 * 32),
        ("r(d+k) + min(2tr, d, k)(d+k)", 4 * 32 + 8 * 32),
        ("min(tR, d, k)(d+k)", 12 * 32),
    ],
)
def test_a_formula_comes_to_what_is_worked_by_hand(formula, value):
    assert evaluate(formula, r=4, d=20, k=12, m=3, t=1, U=3, R=12) == value
