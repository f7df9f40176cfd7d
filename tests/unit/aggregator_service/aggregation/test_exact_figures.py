"""Exact figures of updates that nearly cancel: squares of the terms cannot tell what is left."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, weights

from aggregator_service.aggregation.exact_figures import ExactFigures
from aggregator_service.aggregation.module_cohort import ModuleCohort
from fedlora.adapters.factors import LoraFactors


@pytest.mark.parametrize("left", [1e-3, 1e-5, 1e-7])
def test_a_bound_of_what_is_left_of_products_that_cancel_is_no_rounding(left: float):
    b_DR, a_RK, rest_RK = normal(1, 48, 4), normal(2, 4, 40), normal(3, 4, 40)
    opposite = LoraFactors(left * rest_RK - a_RK, b_DR)
    cohort = ModuleCohort.of([LoraFactors(a_RK, b_DR), opposite], weights(0.5, 0.5))
    # T = left / 2 B R has the rank that is published: nothing need be lost.
    target = LoraFactors(left / 2 * rest_RK, b_DR)
    values = ExactFigures(cohort, target, ()).values
    expected = torch.linalg.svdvals(left / 2 * b_DR @ rest_RK)
    assert values.bound(4) <= 1e-6 * float(expected[0])
    torch.testing.assert_close(values.leading_N[:4], expected[:4], rtol=1e-6, atol=0.0)
