"""Decompositions of stacked products against dense ones, and which core `auto` takes."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, unrelated
from support.reference import EPS, best_of_rank, tail_norm

from fedlora.numerics import BlockProduct, Core, decompose, randomised_svd

WEIGHTS = (0.5, 0.3, 0.2)


def product_of(members, shares=WEIGHTS, dtype=torch.float64):
    return BlockProduct(
        [f.b_DR.to(dtype) for f in members], [f.a_RK.to(dtype) for f in members], shares
    )


def dense(product):
    b_DR, a_RK = product.stacked()
    return b_DR @ a_RK


def rebuilt(svd):
    return (svd.left_DQ * svd.values_N[: svd.rank]) @ svd.right_QK


def crowd(count=40, d=120, k=90, dtype=torch.float64):
    """A flat tail: many clients, as far from each other as from the start."""
    members = drifted(count, drift=1.0, d=d, k=k, r=4)
    return product_of(members, [1 / count] * count, dtype)


def test_blocks_worked_by_hand():
    # 2 [1; 0] [3 4] + 0.5 [0; 2] [1 1] = [[6, 8], [1, 1]]
    one, other = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]])
    product = BlockProduct(
        [one, other], [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0]])], [2.0, 0.5]
    )
    eye = torch.eye(2)
    assert product.times(eye).tolist() == [[6.0, 8.0], [1.0, 1.0]]
    assert product.transposed_times(eye).tolist() == [[6.0, 1.0], [8.0, 1.0]]
    assert product.gram_b().tolist() == [[1.0, 0.0], [0.0, 4.0]]
    assert product.gram_a().tolist() == [[25.0, 7.0], [7.0, 2.0]]
    assert product.component_weights.tolist() == [2.0, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_panels_and_tiles_give_the_gram_matrix_of_the_stack(dtype):
    # More rows than a panel and more components than a tile.
    members = unrelated([50, 30, 70], d=1500, k=1100)
    product = product_of(members, (1.0, 1.0, 1.0), dtype)
    b_DR, a_RK = product.stacked()
    for found, wide in ((product.gram_b(), b_DR.T), (product.gram_a(), a_RK)):
        expected = wide @ wide.T
        slack = wide.shape[1] * EPS * float(expected.max())
        torch.testing.assert_close(found, expected, rtol=0, atol=slack)
        assert torch.equal(found, found.T)


def test_combinations_are_those_of_the_stack():
    product = product_of(unrelated([4, 2, 5], d=1500, k=1100), (1.0, 1.0, 1.0))
    b_DR, a_RK = product.stacked()
    p_RQ = normal(9, 11, 3)
    torch.testing.assert_close(product.combine_b(p_RQ), b_DR @ p_RQ)
    torch.testing.assert_close(product.combine_a(p_RQ.T), p_RQ.T @ a_RK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_thin_products_of_several_groups_are_those_of_the_stack(dtype):
    # The first group is one block wider than a group, the second two blocks, the last one.
    product = product_of(unrelated([200, 60, 50, 70], d=300, k=210), (0.4, 0.3, 0.2, 0.1), dtype)
    b_DR, a_RK = product.stacked()
    x_KL, y_DL = normal(5, 210, 7), normal(6, 300, 7)
    for working in (torch.float32, torch.float64):
        # Two sums in a row, of K or D and of R terms.
        slack = (300 + 380) * torch.finfo(working).eps
        for found, left, right in (
            (product.times(x_KL.to(working)), b_DR, a_RK @ x_KL),
            (product.transposed_times(y_DL.to(working)), a_RK.T, b_DR.T @ y_DL),
        ):
            assert found.dtype is working
            exact = left @ right
            bound = slack * float(left.norm() * right.norm())
            torch.testing.assert_close(found.double(), exact, rtol=0, atol=bound)


@pytest.mark.parametrize("core", [Core.AUTO, Core.QR, Core.GRAM])
@pytest.mark.parametrize("rank", [1, 4, 11, 30])
def test_the_exact_cores_truncate_like_a_dense_decomposition(core, rank):
    product = product_of(unrelated([4, 2, 5]))
    svd = decompose(product, rank=rank, core=core)
    target = dense(product)
    # A Gram core loses components below sqrt(eps) of the largest; these inputs have none.
    assert float((rebuilt(svd) - best_of_rank(target, rank)).norm()) < 1e-9 * float(target.norm())
    assert svd.tail_norm(rank) == pytest.approx(
        tail_norm(target, rank), rel=1e-9, abs=1e-12 * float(target.norm())
    )
    assert not svd.is_estimate


@pytest.mark.parametrize("drift", [1e-1, 1e-3, 1e-5])
def test_auto_is_within_a_millionth_of_the_least_error_at_any_drift(drift):
    product = product_of(drifted(3, drift=drift, d=96, k=64))
    target = dense(product)
    svd = decompose(product, rank=4)
    least = tail_norm(target, 4)
    noise = 100 * EPS * float(target.norm())
    assert float((rebuilt(svd) - target).norm()) <= least * (1 + 1e-6) + noise
    assert svd.tail_norm(4) == pytest.approx(least, rel=1e-6, abs=noise)


def test_auto_takes_the_qr_core_where_the_gram_core_sees_no_tail():
    product = product_of(drifted(3, drift=1e-5, d=96, k=64))
    auto, qr = decompose(product, rank=4), decompose(product, rank=4, core=Core.QR)
    assert torch.equal(auto.values_N, qr.values_N)


def test_auto_takes_the_randomised_core_for_many_clients():
    assert decompose(crowd(count=65), rank=4).is_estimate
    # R x R matrices are small here, however narrow the layer.
    assert not decompose(crowd(count=64), rank=4).is_estimate
    assert not decompose(crowd(count=5), rank=4).is_estimate


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_randomised_core_is_within_a_thousandth_of_the_least_error(dtype):
    product = crowd(dtype=dtype)
    target = dense(product)
    svd = randomised_svd(product, rank=4)
    error = float((rebuilt(svd) - target).norm())
    assert error <= tail_norm(target, 4) * (1 + 1e-3)
    assert svd.rank == 4


def test_small_components_are_told_from_the_rounding_of_float32():
    members = drifted(40, drift=5e-2, d=512, k=480, r=4)
    product = product_of(members, [1 / 40] * 40, torch.float32)
    svd = randomised_svd(product, rank=16)
    assert svd.rank == 16
    error = float((rebuilt(svd) - dense(product)).norm())
    assert error <= tail_norm(dense(product), 16) * (1 + 1e-3)
    assert error < 0.95 * tail_norm(dense(product), 4)


@pytest.mark.parametrize("drift", [1.0, 1e-1])
def test_the_randomised_core_keeps_its_bound_where_it_takes_more_than_stands_out(drift):
    # 16 components of which 4 stand out, in float32: the 12 others are of a flat tail.
    count = 40
    members = drifted(count, drift=drift, d=512, k=480, r=4)
    product = product_of(members, [1 / count] * count, torch.float32)
    target = dense(product)
    svd = randomised_svd(product, rank=16)
    error = float((rebuilt(svd) - target).norm())
    assert error <= tail_norm(target, 16) * (1 + 1e-3)
    for columns in (svd.left_DQ, svd.right_QK.T):
        gap = columns.T @ columns - torch.eye(svd.rank, dtype=torch.float64)
        assert float(gap.abs().max()) < 512 * EPS


def test_its_singular_values_are_underestimates_and_its_tail_is_estimated():
    product = crowd()
    target = dense(product)
    svd = randomised_svd(product, rank=4)
    exact = torch.linalg.svdvals(target)
    assert bool((svd.values_N <= exact[: len(svd.values_N)] * (1 + 1e-12)).all())
    # 16 probes of a tail of some 60 equal values: a standard deviation of about
    # sqrt(2 / (16 * 60)) / 2 = 2 %, so that five of them are missed less often than 1e-6.
    assert svd.tail_norm(4) == pytest.approx(tail_norm(target, 4), rel=0.12)
    full = float(exact.sum() ** 2 / exact.square().sum())
    assert svd.effective_rank() == pytest.approx(full, rel=0.25)


def test_the_randomised_core_is_exact_where_its_columns_span_the_product():
    product = product_of(unrelated([4, 2, 5]))
    target = dense(product)
    svd = randomised_svd(product, rank=11)
    assert float((rebuilt(svd) - target).norm()) < 1e-12 * float(target.norm())
    assert svd.tail_norm(11) < 1e-12 * float(target.norm())


@pytest.mark.parametrize("core", list(Core))
def test_a_product_of_lower_rank_keeps_no_noise(core):
    origin = drifted(1, r=2)[0]
    svd = decompose(product_of([origin] * 3), rank=5, core=core)
    assert svd.rank == 2
    target = origin.delta_weight()
    assert float((rebuilt(svd) - target).norm()) < 1e-6 * float(target.norm())


@pytest.mark.parametrize("core", list(Core))
def test_a_zero_product_has_no_components(core):
    origin = drifted(1)[0]
    zero = BlockProduct([torch.zeros_like(origin.b_DR)], [origin.a_RK], [1.0])
    svd = decompose(zero, rank=3, core=core)
    assert svd.rank == 0
    assert svd.tail_norm(0) == 0


@pytest.mark.parametrize("core", list(Core))
def test_equal_inputs_give_equal_bits_and_positive_largest_entries(core):
    product = product_of(unrelated([4, 2, 5]))
    one, two = (decompose(product, rank=4, core=core) for _ in range(2))
    assert torch.equal(one.left_DQ, two.left_DQ)
    assert torch.equal(one.right_QK, two.right_QK)
    largest = one.left_DQ.abs().argmax(dim=0)
    assert bool((one.left_DQ[largest, torch.arange(4)] > 0).all())


@pytest.mark.parametrize("left", [1e-3, 1e-5, 1e-7])
def test_what_is_left_of_products_that_cancel_is_told_from_rounding(left):
    b_DR, rest_RK, a_RK = normal(1, 300, 80), normal(2, 80, 280), normal(3, 80, 280)
    product = BlockProduct([b_DR, b_DR], [a_RK, left * rest_RK - a_RK], [0.5, 0.5])
    found = decompose(product, rank=8)
    target = left / 2 * b_DR @ rest_RK
    assert found.tail_norm(8) == pytest.approx(tail_norm(target, 8), rel=1e-6)
    lost = float(torch.linalg.vector_norm(rebuilt(found) - target))
    assert lost == pytest.approx(tail_norm(target, 8), rel=1e-6)
