"""The stack of what was added to the base model: sums, caps and their price."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.builders import normal, start, unrelated, weights
from support.dense_rounds import play
from support.reference import EPS, best_of_rank, relative_error, tail_norm

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.base_stack import grown, trimmed
from aggregator_service.aggregation.methods.flora import FLoRA
from aggregator_service.aggregation.module_cohort import GlobalModule
from aggregator_service.aggregation.registry import COMPRESSIONS, METHODS
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError, Reason

CAPPED = [r for r in (*METHODS.values(), *COMPRESSIONS.values()) if hasattr(r, "max_base_rank")]


def spectrum(values, d=24, k=17):
    """Factors of a product with these singular values."""
    left = torch.linalg.qr(normal(1, d, len(values)))[0]
    right = torch.linalg.qr(normal(2, k, len(values)))[0]
    return LoraFactors(right.T, left * torch.tensor(values, dtype=torch.float64))


def test_below_the_cap_a_change_is_set_beside_the_stack_as_it_is():
    base, change = unrelated([4, 3])
    found = grown(base, change, max_base_rank=0)
    assert torch.equal(found.stack.a_RK, torch.cat([base.a_RK, change.a_RK]))
    assert torch.equal(found.stack.b_DR, torch.cat([base.b_DR, change.b_DR], dim=1))
    assert found.measurements == {"base_rank": 7.0, "base_truncation_error": 0.0}


def test_one_number_worked_by_hand():
    # diag(3, 4) + diag(0, 8), capped at one component: 12 is kept, 3 of |(3, 12)| is lost.
    eye = torch.eye(2, dtype=torch.float64)
    base = LoraFactors(eye, torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64)))
    change = LoraFactors(eye[1:], 8 * eye[:, 1:])
    found = grown(base, change, max_base_rank=1)
    expected = torch.tensor([[0.0, 0.0], [0.0, 12.0]], dtype=torch.float64)
    torch.testing.assert_close(found.stack.delta_weight(), expected, rtol=0, atol=100 * EPS)
    lost = found.measurements["base_truncation_error"]
    assert lost == pytest.approx(3 / math.sqrt(153), rel=1e-14)


def test_above_the_cap_the_stack_is_the_best_of_its_rank():
    base, change = unrelated([5, 4])
    dense = base.delta_weight() + change.delta_weight()
    found = grown(base, change, max_base_rank=6)
    assert found.stack.rank == 6
    scale = 1000 * EPS * float(dense.norm())
    torch.testing.assert_close(
        found.stack.delta_weight(), best_of_rank(dense, 6), rtol=0, atol=scale
    )
    lost = found.measurements["base_truncation_error"]
    assert lost == pytest.approx(tail_norm(dense, 6) / float(dense.norm()), rel=1e-12)


def test_no_layer_needs_more_components_than_its_shorter_side():
    base, change = start(r=15, seed=3), start(r=12, seed=8)
    found = grown(base, change, max_base_rank=0)
    dense = base.delta_weight() + change.delta_weight()
    assert found.stack.rank == 17
    assert found.measurements["base_truncation_error"] == 0.0
    gap = float((found.stack.delta_weight() - dense).norm())
    assert gap < 1000 * EPS * float(dense.norm())


def test_recompressed_factors_are_equally_large():
    found = grown(start(r=9, seed=3), start(r=9, seed=8), max_base_rank=4).stack
    torch.testing.assert_close(found.a_RK.norm(dim=1), found.b_DR.norm(dim=0))


def test_a_change_of_nothing_leaves_the_stack_alone():
    base = start()
    for nothing in (
        None,
        LoraFactors(normal(1, 3, 17), torch.zeros(24, 3).double()),
        LoraFactors(torch.zeros(3, 17).double(), normal(1, 24, 3)),
    ):
        found = grown(base, nothing, max_base_rank=4)
        assert torch.equal(found.stack.a_RK, base.a_RK)
        assert grown(None, nothing, max_base_rank=0).stack is None


def test_a_stack_that_cancels_is_no_stack():
    base = start(r=10)
    opposite = LoraFactors(base.a_RK, -base.b_DR)
    found = grown(base, opposite, max_base_rank=10)
    # What is left is rounding: at most eps of the products that cancelled.
    left = 0.0 if found.stack is None else float(found.stack.delta_weight().norm())
    assert left < 1000 * EPS * float(base.delta_weight().norm())


def test_a_stack_is_float64_whatever_the_change_is():
    change = start().to(torch.bfloat16)
    assert grown(None, change, max_base_rank=0).stack.dtype is torch.float64


def test_trimming_keeps_the_fewest_components_that_the_tolerance_allows():
    change = spectrum([8.0, 4.0, 3.0, 1e-9])
    for tolerance, rank in ((0.0, 4), (1e-8, 3), (2.9, 3), (3.1, 2), (4.9, 2), (5.1, 1), (9.4, 1)):
        found = trimmed(change, tolerance=tolerance)
        assert found.rank == rank
        assert float((found.delta_weight() - change.delta_weight()).norm()) <= tolerance + 1e-13
    assert trimmed(change, tolerance=9.5) is None


def test_trimming_drops_components_that_are_not_there():
    left, right = normal(1, 24, 2), normal(2, 2, 17)
    wide = LoraFactors(normal(3, 6, 2) @ right, left @ normal(4, 2, 6))
    assert trimmed(wide, tolerance=0.0).rank == 2


@pytest.mark.parametrize("rule", CAPPED, ids=lambda rule: rule.name)
def test_a_cap_below_zero_is_refused(rule):
    with pytest.raises(FedLoraError, match=r": expected max_base_rank >= 0 .* got -1") as caught:
        replace(rule, max_base_rank=-1)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_over_rounds_in_bfloat16_a_stack_loses_no_more_than_one_rounding_of_each_change():
    # A dense sum in bfloat16 is rounded as a whole in every round.
    first = GlobalModule(factors=LoraFactors(normal(5, 2, 60), torch.zeros(50, 2).double()))
    kept = Publication(dtype=torch.bfloat16)
    w = weights(1, 2)
    versions, wanted = play(FLoRA(), first, w, rounds=10, rank=2, publication=kept)
    gained = torch.zeros(50, 60, dtype=torch.float64)
    naive = torch.zeros(50, 60, dtype=torch.bfloat16)
    before, size = torch.zeros_like(gained), 0.0
    for version, want in zip(versions, wanted, strict=True):
        # `wanted` counts from the base as it was read: what this round learnt is the rest.
        change = want - before
        gained, size = gained + change, size + float(change.norm())
        naive = (naive.double() + change).bfloat16()
        before = version.base.delta_weight()
        assert float((before - gained).norm()) < 2 * 2.0**-8 * size
    assert relative_error(before, gained) < relative_error(naive.double(), gained)
