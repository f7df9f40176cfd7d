from __future__ import annotations

import math

import pytest

from client_worker.data.portable_random import PortableRandom


def test_shuffling_keeps_every_item_and_reaches_every_order():
    orders = {tuple(PortableRandom(seed).shuffled("abc")) for seed in range(200)}
    # 200 draws miss one of 6 orders with probability below 6 * (5/6)**200 = 9e-16.
    assert orders == {("a", "b", "c"), ("a", "c", "b"), ("b", "a", "c"),
                      ("b", "c", "a"), ("c", "a", "b"), ("c", "b", "a")}  # fmt: skip


@pytest.mark.parametrize("alpha", [0.3, 1.0, 5.0])
def test_dirichlet_shares_have_the_means_and_variances_of_the_distribution(alpha):
    size, draws = 4, 4000
    rng = PortableRandom(1)
    shares = [rng.dirichlet(alpha, size)[0] for _ in range(draws)]
    mean = math.fsum(shares) / draws
    variance = math.fsum((s - mean) ** 2 for s in shares) / draws
    exact = (size - 1) / size**2 / (size * alpha + 1)
    # Five standard errors of the mean; the variance's own is at most its value times 3/sqrt(draws).
    assert mean == pytest.approx(1 / size, abs=5 * math.sqrt(exact / draws))
    assert variance == pytest.approx(exact, rel=5 * 3 / math.sqrt(draws))


def test_shares_add_up_to_one_for_the_smallest_concentrations():
    rng = PortableRandom(2)
    for alpha in (1e-6, 1e-3, 1e3):
        shares = rng.dirichlet(alpha, 5)
        assert math.fsum(shares) == pytest.approx(1.0, abs=1e-12)
        assert min(shares) >= 0
