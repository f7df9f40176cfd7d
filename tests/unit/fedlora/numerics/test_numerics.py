"""Gram matrices, norms and truncated decompositions against dense float64 matrices."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import normal, unrelated
from support.reference import EPS, best_of_rank

from fedlora.numerics import (
    BlockProduct,
    effective_rank,
    gram_core_svd,
    gram_matrix,
    product_inner,
    product_norm,
    qr_core_svd,
    weighted_sum,
)


def stacked_gram_core(b_blocks, a_blocks, *, rank):
    """The Gram core with the stacked core's arguments."""
    return gram_core_svd(BlockProduct(b_blocks, a_blocks, [1.0] * len(a_blocks)), rank=rank)


CORES = pytest.mark.parametrize("core", [qr_core_svd, stacked_gram_core])


def blocks(ranks=(4, 2, 3), d=24, k=17, seed=0):
    cohort = unrelated(ranks, d=d, k=k, seed=seed)
    return [f.b_DR for f in cohort], [f.a_RK for f in cohort]


def test_gram_matrix_is_that_of_the_stack_and_exactly_symmetric():
    b, _ = blocks()
    gram, stack = gram_matrix(b), torch.cat(b, dim=1)
    torch.testing.assert_close(gram, stack.T @ stack, rtol=0, atol=24 * EPS * float(gram.max()))
    assert torch.equal(gram, gram.T)


def test_a_pair_of_blocks_has_the_same_gram_bits_in_every_cohort():
    b, _ = blocks((4, 2, 3))
    whole, pair = gram_matrix(b), gram_matrix([b[0], b[2]])
    assert torch.equal(whole[:4, 6:], pair[:4, 4:])
    assert torch.equal(whole[6:, 6:], pair[4:, 4:])


def test_gram_matrix_of_half_precision_is_accumulated_in_float64():
    b = normal(3, 24, 4).to(torch.bfloat16)
    assert torch.equal(gram_matrix([b]), gram_matrix([b.double()]))


def test_weighted_sum_adds_in_order_in_float64():
    tensors = [torch.tensor([1.0]), torch.tensor([2.0**-40]), torch.tensor([-1.0])]
    assert float(weighted_sum(tensors, [1.0, 1.0, 1.0])) == 2.0**-40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_weighted_sum_has_the_bits_of_one_multiply_add_per_term(dtype):
    # Transposed and padded views too: what a cohort of several ranks hands in.
    tensors = [normal(u, 67, 130).to(dtype) for u in range(3)]
    tensors += [normal(3, 130, 67).to(dtype).T, normal(4, 80, 140).to(dtype)[:67, :130]]
    copies = [tensor.clone() for tensor in tensors]
    weights = [0.1, 0.3, -0.2, 1 / 3, 1e-9]
    expected = torch.zeros(67, 130, dtype=torch.float64)
    for tensor, weight in zip(tensors, weights, strict=True):
        expected.add_(tensor.to(torch.float64), alpha=weight)
    assert torch.equal(weighted_sum(tensors, weights), expected)
    assert torch.equal(weighted_sum(tensors, torch.tensor(weights, dtype=torch.float64)), expected)
    assert all(torch.equal(one, two) for one, two in zip(tensors, copies, strict=True))


def test_norm_of_a_product_worked_by_hand():
    # b a = [[2, 4], [1, 2]]: squares 4 + 16 + 1 + 4
    b, a = torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0, 2.0]])
    assert product_norm(b, a) == 5.0
    assert product_inner(b, a, b, a) == 25.0


@pytest.mark.parametrize("size", [1e-3, 1e-8, 1e-11])
def test_the_difference_of_two_factorisations_of_one_product_keeps_its_digits(size):
    b, a, turn = normal(1, 24, 4), normal(2, 4, 17), normal(3, 4, 4)
    extra = normal(4, 24, 4)
    extra *= size * float((b @ a).norm()) / float((extra @ a).norm())
    left = torch.cat([(b + extra) @ turn, -b], dim=1)
    right = torch.cat([torch.linalg.solve(turn, a), a])
    # Both factorisations are rounded to eps times the condition of the change of basis, and the
    # trace form is trusted to 1e-8.
    slack = max(1e-8, 100 * EPS * float(torch.linalg.cond(turn)) / size)
    assert product_norm(left, right) == pytest.approx(float((extra @ a).norm()), rel=slack)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_inner_product_of_products_is_the_dense_one(r, s, seed):
    b1, a1, b2, a2 = (
        normal(seed + i, *shape) for i, shape in enumerate([(9, r), (r, 7), (9, s), (s, 7)])
    )
    dense = float(((b1 @ a1) * (b2 @ a2)).sum())
    bound = 64 * EPS * float((b1 @ a1).norm() * (b2 @ a2).norm() + b1.norm() * a1.norm() * 10)
    assert math.isclose(product_inner(b1, a1, b2, a2), dense, abs_tol=max(bound, 1e-12))


@CORES
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_core_svd_truncates_like_the_dense_decomposition(core, rank):
    b, a = blocks()
    dense = torch.cat(b, dim=1) @ torch.cat(a)
    svd = core(b, a, rank=rank)
    product = (svd.left_DQ * svd.values_N[: svd.rank]) @ svd.right_QK
    torch.testing.assert_close(product, best_of_rank(dense, rank), rtol=0, atol=1e-11)
    exact = torch.linalg.svdvals(dense)[: len(svd.values_N)]
    torch.testing.assert_close(svd.values_N, exact, rtol=0, atol=1e-12 * float(exact[0]))


@CORES
def test_core_svd_of_more_columns_than_the_layer_has_rows(core):
    b, a = blocks((6, 6, 6), d=10, k=8)
    dense = torch.cat(b, dim=1) @ torch.cat(a)
    svd = core(b, a, rank=8)
    product = (svd.left_DQ * svd.values_N[: svd.rank]) @ svd.right_QK
    torch.testing.assert_close(product, dense, rtol=0, atol=1e-10)


@CORES
def test_singular_vectors_are_orthonormal_and_their_signs_fixed(core):
    svd = core(*blocks(), rank=5)
    eye = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(svd.left_DQ.T @ svd.left_DQ, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(svd.right_QK @ svd.right_QK.T, eye, rtol=0, atol=1e-12)
    largest = svd.left_DQ.gather(0, svd.left_DQ.abs().argmax(dim=0, keepdim=True))
    assert bool((largest > 0).all())


@CORES
def test_components_that_are_rounding_noise_are_not_kept(core):
    b, a = blocks((3,))
    twice = core([b[0], b[0]], [a[0], a[0]], rank=6)
    assert twice.rank == 3
    assert core([b[0] * 0], [a[0]], rank=3).rank == 0


def test_qr_core_keeps_small_singular_values_that_a_gram_core_loses():
    left, right = torch.linalg.qr(normal(1, 24, 4))[0], torch.linalg.qr(normal(2, 17, 4))[0]
    exact = torch.tensor([1.0, 1e-3, 1e-6, 1e-11], dtype=torch.float64)
    svd = qr_core_svd([left * exact], [right.T], rank=4)
    # Backward error of QR and SVD: a modest multiple of eps times the largest value.
    assert float((svd.values_N - exact).abs().max()) < 24 * 17 * EPS
    assert svd.tail_norm(3) == pytest.approx(1e-11, rel=1e-2)


def test_effective_rank_counts_equal_singular_values():
    assert effective_rank(torch.tensor([2.0, 2.0, 2.0])) == 3.0
    assert effective_rank(torch.tensor([3.0, 0.0])) == 1.0
    assert effective_rank(torch.zeros(2)) == 0.0
    # (3 + 1)^2 / (9 + 1)
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(1.6)
