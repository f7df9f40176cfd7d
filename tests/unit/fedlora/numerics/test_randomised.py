"""The randomised core on cohorts with and without components that stand out, against exact ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import drifted, normal, unrelated
from support.reference import EPS, tail_norm

from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import BlockProduct, projection, randomised_svd


def product_of(members, dtype=torch.float32):
    share = 1 / len(members)
    return BlockProduct(
        [f.b_DR.to(dtype) for f in members],
        [f.a_RK.to(dtype) for f in members],
        [share] * len(members),
    )


def half_common(count, *, d, k, r):
    """Half of the components near a common start, the others a flat tail with nothing in common."""
    near = drifted(count, d=d, k=k, r=r // 2)
    far = unrelated([r - r // 2] * count, d=d, k=k)
    return [
        LoraFactors(torch.cat([f.a_RK, g.a_RK]), torch.cat([f.b_DR, 0.3 * g.b_DR], dim=1))
        for f, g in zip(near, far, strict=True)
    ]


COHORTS = {
    "near a start": lambda: drifted(40, d=300, k=260, r=8),
    "very near a start": lambda: drifted(40, drift=0.02, d=300, k=260, r=8),
    "nothing in common": lambda: unrelated([8] * 40, d=300, k=260),
    "half of each": lambda: half_common(40, d=300, k=260, r=8),
    "more ranks than rows": lambda: unrelated([8] * 60, d=200, k=260),
    "of mixed ranks": lambda: unrelated([4, 8, 12] * 14, d=260, k=200),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", sorted(COHORTS))
def test_the_error_is_within_a_thousandth_of_the_least_one(name, dtype):
    product = product_of(COHORTS[name](), dtype)
    b_DR, a_RK = product.stacked()
    target = b_DR @ a_RK
    svd = randomised_svd(product, rank=8)
    found = (svd.left_DQ * svd.values_N[:8]) @ svd.right_QK
    assert float((target - found).norm()) <= tail_norm(target, 8) * (1 + 1e-3)
    # 16 probes of some hundred values: see the estimate's standard deviation in the next test.
    assert svd.tail_norm(8) == pytest.approx(tail_norm(target, 8), rel=0.1)


def test_what_is_missed_is_estimated_without_bias():
    """Over many draws of signs the mean of the estimate is the norm itself."""
    product = product_of(COHORTS["nothing in common"](), torch.float64)
    b_DR, a_RK = product.stacked()
    target = b_DR @ a_RK
    near = normal(4, 20, 260)
    squares = []
    for seed in range(40):
        found = projection(product, rank=8, near=[near], seed=seed)
        basis = found.basis_KM
        exact = float((target - target @ basis @ basis.T).square().sum())
        squares.append(found.missed_norm**2 / exact)
        values = torch.linalg.svdvals(target - target @ basis @ basis.T)
        spread = math.sqrt(2 * float((values**4).sum()) / 16) / exact
    mean = sum(squares) / len(squares)
    # Five standard deviations of a mean of 40.
    assert abs(mean - 1) < 5 * spread / math.sqrt(40)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    near=st.integers(0, 40),
    rank=st.integers(1, 12),
    d=st.integers(20, 90),
    k=st.integers(20, 90),
)
def test_a_projection_is_orthonormal_and_contains_what_it_was_told_to(seed, near, rank, d, k):
    product = product_of(unrelated([5] * 12, d=d, k=k, seed=seed % 1000), torch.float64)
    rows = normal(seed % 997, near, k)
    found = projection(product, rank=rank, near=[rows])
    basis = found.basis_KM
    eye = torch.eye(found.size, dtype=torch.float64)
    torch.testing.assert_close(basis.T @ basis, eye, rtol=0, atol=1e3 * EPS)
    assert found.size <= k
    torch.testing.assert_close(rows @ basis @ basis.T, rows, rtol=0, atol=1e-9)
    b_DR, a_RK = product.stacked()
    exact = torch.linalg.svdvals(b_DR @ a_RK)
    count = min(found.size, len(exact))
    # By squares: a value that is 0 may come out as the root of their rounding.
    slack = math.sqrt(EPS) * float(exact[0])
    assert bool((found.values_M[:count] <= exact[:count] * (1 + 1e-9) + slack).all())


def test_a_value_that_rounding_has_made_zero_has_a_direction_all_the_same():
    # Whether an eigenvalue of a Gram matrix comes out as a little above or below zero is up to the
    # processor; below, its root is zero.
    product = product_of([unrelated([4], d=40, k=30)[0]] * 3, torch.float64)
    found = projection(product, rank=3)
    found.add(found.lacking(normal(7, 30, 2)), 1e3 * normal(8, 40, 2))
    found.values_M[-1] = 0
    left = found.leading(found.size)
    eye = torch.eye(found.size, dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, eye, rtol=0, atol=1e3 * EPS)


def test_distances_are_exact_where_the_basis_holds_everything():
    product = product_of(unrelated([4] * 3, d=40, k=12), torch.float64)
    b_DR, a_RK = product.stacked()
    other = unrelated([3], d=40, k=12, seed=9)[0]
    found = projection(product, rank=2, near=[torch.eye(12, dtype=torch.float64)])
    expected = float((b_DR @ a_RK - other.delta_weight()).norm())
    assert found.distance(other.b_DR, other.a_RK) == pytest.approx(expected, rel=1e-12)
    assert found.missed_norm < 1e-12 * expected


def test_rows_that_know_nothing_of_the_strongest_components_do_not_hide_them():
    # T's two halves have nothing in common; what the basis begins with is of the weaker one.
    strong, weak = normal(1, 3, 100), normal(2, 3, 100)
    strong[:, 50:], weak[:, :50] = 0, 0
    left = torch.linalg.qr(normal(3, 120, 6)).Q
    members = [LoraFactors(strong, 10 * left[:, :3]), LoraFactors(weak, left[:, 3:])]
    product = product_of(members * 30, torch.float64)
    b_DR, a_RK = product.stacked()
    exact = torch.linalg.svdvals(b_DR @ a_RK)
    found = projection(product, rank=3, near=[weak])
    torch.testing.assert_close(found.values_M[:3], exact[:3], rtol=1e-9, atol=0)
    assert found.missed_norm < 1e-9 * float(exact[0])
