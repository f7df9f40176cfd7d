"""FedRot-LoRA: bases turned towards one reference before the factors are averaged."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, rotated_copies, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, mean_product, relative_error

from aggregator_service.aggregation.base import GlobalModule
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.fedrot_lora import FedRotLoRA, aligned
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError

W4 = weights(1, 2, 3, 4)


def distance(f, g):
    return float((f.a_RK - g.a_RK).square().sum() + (f.b_DR - g.b_DR).square().sum())


def test_one_component_worked_by_hand():
    # The second client is the first with both signs changed: averaging gives 0, aligning gives it.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(3 * one, 2 * one), LoraFactors(-3 * one, -2 * one)]
    assert float(combine(FedIT(), members, weights(1, 1)).factors.delta_weight()) == 0
    assert float(combine(FedRotLoRA(), members, weights(1, 1)).factors.delta_weight()) == 6


def test_alignment_changes_no_product():
    reference = start(seed=5)
    for f in unrelated([4] * 3):
        found = aligned(f, reference).delta_weight()
        assert relative_error(found, f.delta_weight()) < 50 * EPS


def test_no_rotation_is_nearer_to_the_reference():
    reference, (f,) = start(seed=5), unrelated([4])
    best = distance(aligned(f, reference), reference)
    for seed in range(200):
        turn = torch.linalg.qr(normal(seed, 4, 4))[0]
        other = LoraFactors(turn.T @ f.a_RK, f.b_DR @ turn)
        assert best <= distance(other, reference) + 1e-9
        # Also near the optimum.
        skew = 0.01 * (turn - turn.T)
        small = torch.linalg.matrix_exp(skew)
        near = aligned(f, reference)
        turned = LoraFactors(small.T @ near.a_RK, near.b_DR @ small)
        assert best <= distance(turned, reference) + 1e-9


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_rotated_copies_are_undone_where_averaging_loses_most_of_them(noise):
    members = rotated_copies(4, start(), noise=noise)
    goal = ideal(members, W4)
    ours = relative_error(combine(FedRotLoRA(), members, W4).factors.delta_weight(), goal)
    mean = relative_error(mean_product(members, W4), goal)
    assert ours < (1e-12 if noise == 0 else 0.05)
    assert mean > 0.4


def test_the_reference_is_what_the_round_began_from():
    members, first = drifted(4), start()
    origin = GlobalModule(factors=first)
    found = combine(FedRotLoRA(), members, W4, start=origin).factors
    turned = [aligned(f, first) for f in members]
    share = W4 / 10
    torch.testing.assert_close(
        found.a_RK, sum(x * f.a_RK for x, f in zip(share, turned, strict=True))
    )
    torch.testing.assert_close(
        found.b_DR, sum(x * f.b_DR for x, f in zip(share, turned, strict=True))
    )


def test_ordinary_drift_gains_little():
    members, origin = drifted(6, drift=0.1), GlobalModule(factors=start())
    w = weights(*range(1, 7))
    goal = ideal(members, w)
    result = combine(FedRotLoRA(), members, w, start=origin)
    ours = relative_error(result.factors.delta_weight(), goal)
    mean = relative_error(mean_product(members, w), goal)
    assert ours == pytest.approx(mean, rel=0.2)
    assert 0 < result.measurements["turned"] < 0.1


def test_in_a_first_round_the_common_a_stays():
    # B of the reference is zero: A alone is aligned, and it is the same for all.
    first = start()
    members = [LoraFactors(first.a_RK, normal(40 + u, 24, 4)) for u in range(4)]
    origin = GlobalModule(factors=LoraFactors(first.a_RK, torch.zeros_like(first.b_DR)))
    found = combine(FedRotLoRA(), members, W4, start=origin).factors
    assert relative_error(found.delta_weight(), ideal(members, W4)) < 1e-12


def test_mixed_ranks_are_refused():
    with pytest.raises(FedLoraError, match=r"fedrot_lora needs one rank .* \[2, 4\]"):
        combine(FedRotLoRA(), unrelated([2, 4]), weights(1, 1))
