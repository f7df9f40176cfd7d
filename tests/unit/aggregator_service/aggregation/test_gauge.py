"""One product in every gauge: what each promises of its factors, and what all leave alone."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, start
from support.reference import EPS, relative_error

from aggregator_service.aggregation.gauge import MAX_CONDITION, in_gauge
from aggregator_service.aggregation.spare_components import FRESH_ROW_NORM
from fedlora.adapters.factors import LoraFactors
from fedlora.runs.method import Gauge

GAUGES = [gauge for gauge in Gauge if gauge is not Gauge.OWN]
every_gauge = pytest.mark.parametrize("gauge", GAUGES)


def turned(factors, gauge, reference=None):
    return in_gauge(
        factors,
        gauge,
        reference=reference or start(r=factors.rank, seed=9),
        generator=torch.Generator().manual_seed(1),
    )


def moved(factors, amount, seed=20):
    """Other factors nearby, as after a round."""
    return LoraFactors(
        factors.a_RK + amount * normal(seed, *factors.a_RK.shape),
        factors.b_DR + amount * normal(seed + 1, *factors.b_DR.shape),
    )


def distance(one, other):
    """|A - A'|^2 + |B - B'|^2."""
    return float((one.a_RK - other.a_RK).square().sum() + (one.b_DR - other.b_DR).square().sum())


def test_a_product_of_rank_one_worked_by_hand():
    # (3, 0)^T (0, 8) is 24 times two unit vectors.
    factors = LoraFactors(
        torch.tensor([[0.0, 8.0]]).double(), torch.tensor([[3.0], [0.0]]).double()
    )
    root = 24**0.5
    for gauge, a, b in (
        (Gauge.BALANCED, root, root),
        (Gauge.ORTHONORMAL_A, 1.0, 24.0),
        (Gauge.ORTHONORMAL_B, 24.0, 1.0),
        # What A_ref has along the row space, and B what is left.
        (Gauge.CLOSEST_A, -2.0, -12.0),
        (Gauge.PROCRUSTES, -root, -root),
    ):
        near = LoraFactors(torch.tensor([[5.0, -2.0]]).double(), torch.zeros(2, 1).double())
        found = turned(factors, gauge, near)
        torch.testing.assert_close(found.a_RK, torch.tensor([[0.0, a]]).double())
        torch.testing.assert_close(found.b_DR, torch.tensor([[b], [0.0]]).double())


@every_gauge
@pytest.mark.parametrize("rank", [1, 4, 17, 20])
def test_the_product_stays_to_rounding(gauge, rank):
    factors = start(r=rank)
    found = turned(factors, gauge)
    assert found.rank == rank
    assert found.dtype == torch.float64
    # M^-1 loses as many digits as M's condition number has.
    room = 1000 * EPS * (MAX_CONDITION if gauge is Gauge.CLOSEST_A else 1)
    assert relative_error(found.delta_weight(), factors.delta_weight()) < room


@every_gauge
def test_only_the_product_counts_and_not_how_it_was_factored(gauge):
    factors = start()
    g = normal(70, 4, 4)
    other = LoraFactors(torch.linalg.solve(g, factors.a_RK), factors.b_DR @ g)
    one, two = turned(factors, gauge), turned(other, gauge)
    torch.testing.assert_close(one.a_RK, two.a_RK, rtol=0, atol=1e-9)
    torch.testing.assert_close(one.b_DR, two.b_DR, rtol=0, atol=1e-9)


def test_balanced_factors_have_equal_diagonal_gram_matrices():
    found = turned(start(), Gauge.BALANCED)
    gram_b, gram_a = found.b_DR.T @ found.b_DR, found.a_RK @ found.a_RK.T
    torch.testing.assert_close(gram_b, gram_a, rtol=0, atol=1e-12)
    torch.testing.assert_close(gram_a, torch.diag(gram_a.diagonal()), rtol=0, atol=1e-12)


def test_orthonormal_gauges_are_orthonormal():
    eye = torch.eye(4, dtype=torch.float64)
    a = turned(start(), Gauge.ORTHONORMAL_A).a_RK
    b = turned(start(), Gauge.ORTHONORMAL_B).b_DR
    torch.testing.assert_close(a @ a.T, eye, rtol=0, atol=1e-13)
    torch.testing.assert_close(b.T @ b, eye, rtol=0, atol=1e-13)


@pytest.mark.parametrize("gauge", [Gauge.BALANCED, Gauge.ORTHONORMAL_A, Gauge.ORTHONORMAL_B])
def test_the_first_components_are_the_best_adapter_of_a_lower_rank(gauge):
    factors = start()
    found, dense = turned(factors, gauge), factors.delta_weight()
    u, s, vh = torch.linalg.svd(dense)
    for rank in (1, 2, 3):
        first = LoraFactors(found.a_RK[:rank], found.b_DR[:, :rank])
        best = (u[:, :rank] * s[:rank]) @ vh[:rank]
        assert relative_error(first.delta_weight(), best) < 1e-12


def test_closest_a_is_the_reference_projected_on_the_row_space():
    factors, near = start(), moved(start(), 0.3)
    found = turned(factors, Gauge.CLOSEST_A, near)
    _, _, vh = torch.linalg.svd(factors.delta_weight())
    rows = vh[:4]
    torch.testing.assert_close(found.a_RK, near.a_RK @ rows.T @ rows, rtol=0, atol=1e-11)


def test_closest_a_stays_well_conditioned_where_the_reference_is_not():
    factors = start()
    row = factors.a_RK[:1].repeat(4, 1)
    found = turned(factors, Gauge.CLOSEST_A, LoraFactors(row, factors.b_DR))
    # Within the row space M's condition number is A's, but for that of V.
    assert float(torch.linalg.cond(found.a_RK)) < MAX_CONDITION * (1 + 1e-6)
    assert relative_error(found.delta_weight(), factors.delta_weight()) < 1e-9


def test_procrustes_is_the_rotation_of_the_balanced_factors_nearest_to_the_reference():
    factors = start()
    plain = turned(factors, Gauge.BALANCED)
    near = moved(plain, 0.3)
    found = turned(factors, Gauge.PROCRUSTES, near)
    turn = found.a_RK @ torch.linalg.pinv(plain.a_RK)
    torch.testing.assert_close(turn @ turn.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-11)
    scale = float((near.b_DR.norm() / near.a_RK.norm()) ** 0.5)
    level = LoraFactors(near.a_RK * scale, near.b_DR / scale)
    best = distance(found, level)
    for seed in range(20):
        for angle in (1e-4, 1.0):
            skew = angle * normal(seed, 4, 4)
            other = torch.linalg.matrix_exp(skew - skew.T)
            rotated = LoraFactors(other @ found.a_RK, found.b_DR @ other.T)
            assert best < distance(rotated, level)


@pytest.mark.parametrize("gauge", [Gauge.CLOSEST_A, Gauge.PROCRUSTES])
def test_a_product_that_has_not_moved_keeps_its_factors(gauge):
    before = turned(start(), gauge)
    after = turned(before, gauge, before)
    torch.testing.assert_close(after.a_RK, before.a_RK, rtol=0, atol=1e-11)
    torch.testing.assert_close(after.b_DR, before.b_DR, rtol=0, atol=1e-11)


@pytest.mark.parametrize("gauge", [Gauge.CLOSEST_A, Gauge.PROCRUSTES])
def test_a_small_step_of_the_product_is_a_small_step_of_the_factors(gauge):
    before = turned(start(), Gauge.BALANCED)
    after = moved(before, 1e-3)
    near, sorted_anew = (turned(after, g, before) for g in (gauge, Gauge.ORTHONORMAL_B))
    assert distance(near, before) < 10 * distance(after, before)
    assert distance(sorted_anew, before) > 1000 * distance(after, before)


@every_gauge
def test_what_has_no_share_in_the_product_is_made_trainable(gauge):
    factors = start()
    factors = LoraFactors(factors.a_RK, factors.b_DR.clone())
    factors.b_DR[:, 1] = 0
    factors.a_RK[1] = 0
    found = turned(factors, gauge)
    assert relative_error(found.delta_weight(), factors.delta_weight()) < 1e-9
    assert float(found.a_RK[3].norm()) == pytest.approx(FRESH_ROW_NORM)
    assert not found.b_DR[:, 3].any()


@every_gauge
def test_a_product_of_zero_keeps_its_factors(gauge):
    factors = LoraFactors(normal(1, 4, 17), torch.zeros(24, 4).double())
    assert turned(factors, gauge) is factors


@every_gauge
def test_a_reference_of_another_rank_is_cut_or_padded(gauge):
    factors = start()
    for rank in (2, 6):
        found = turned(factors, gauge, start(r=rank, seed=9))
        assert found.rank == 4
        assert relative_error(found.delta_weight(), factors.delta_weight()) < 1e-9


def learnt(factors, gradient, rate):
    """What one SGD step on both factors does to the product, over the rate."""
    a, b = (t.clone().requires_grad_() for t in (factors.a_RK, factors.b_DR))
    (gradient * (b @ a)).sum().backward()
    after = (b.detach() - rate * b.grad) @ (a.detach() - rate * a.grad)
    return (after - factors.delta_weight()) / rate


def test_one_sgd_step_moves_the_product_otherwise_in_every_gauge():
    # -lr (B B^T G + G A^T A) to first order: the model is one, what it learns next is not.
    product, gradient = start(), normal(80, 24, 17)
    moves = {}
    for gauge in GAUGES:
        f = turned(product, gauge)
        moves[gauge] = -(f.b_DR @ f.b_DR.T @ gradient + gradient @ f.a_RK.T @ f.a_RK)
        # What is left is rate * g_B g_A.
        rest = [relative_error(learnt(f, gradient, rate), moves[gauge]) for rate in (1e-4, 1e-5)]
        assert rest[0] == pytest.approx(10 * rest[1], rel=1e-3)
        assert rest[1] < 1e-3
    balanced, rotated = moves.pop(Gauge.BALANCED), moves.pop(Gauge.PROCRUSTES)
    # A rotation is no change of gauge that a step would see.
    assert relative_error(rotated, balanced) < 1e-9
    assert all(relative_error(move, balanced) > 1e-2 for move in moves.values())
