"""Coefficients over clients and over blocks: two descriptions of one sum."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, weights

from aggregator_service.aggregation.coefficients import (
    balanced,
    concentration,
    positive,
    proximal_step,
    to_blocks,
    to_clients,
)

SHARES = weights(1, 2, 3, 4) / 10


def test_blocks_and_clients_describe_one_sum():
    factors, c = normal(1, 4, 5, 3), normal(2, 2, 4)
    mean = torch.einsum("u,uij->ij", SHARES, factors)
    blocks = torch.cat([mean[None], factors - mean])
    for x in (to_blocks(c), to_blocks(c, SHARES)):
        torch.testing.assert_close(
            torch.einsum("sn,nij->sij", x, blocks), torch.einsum("su,uij->sij", c, factors)
        )
        torch.testing.assert_close(to_clients(x, SHARES), c)


def test_the_factor_mean_is_the_first_block():
    assert to_blocks(SHARES, SHARES).tolist() == pytest.approx([1.0, 0, 0, 0, 0], abs=1e-16)


def test_balancing_changes_no_product_of_coefficients():
    x, y = normal(3, 2, 5), 1e3 * normal(4, 2, 5)
    p, q = (to_clients(c, SHARES) for c in balanced(x, y, SHARES))
    torch.testing.assert_close(p.norm(dim=1), q.norm(dim=1))
    before = to_clients(x, SHARES)[:, :, None] * to_clients(y, SHARES)[:, None]
    torch.testing.assert_close(p[:, :, None] * q[:, None], before)


def test_of_a_pair_and_its_negative_the_positive_one_is_taken():
    p, q = positive(weights(-1, -2, 0.5), weights(1, -1, 3))
    assert p.tolist() == [1, 2, -0.5]
    assert q.tolist() == [-1, 1, -3]


def test_concentration_adds_up_a_clients_components():
    p = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    assert concentration(p, torch.ones(2, 2)) == 0.5
    assert concentration(torch.zeros(3), torch.zeros(3)) == 1.0


def test_a_proximal_step_solves_the_ridge_system():
    root, g = normal(5, 6, 4), normal(6, 4)
    system = root.T @ root
    ridged = system + 0.1 * torch.diag(system.diagonal())
    step = proximal_step(system[None], g[None], 0.1)[0]
    torch.testing.assert_close(step, torch.linalg.solve(ridged, g))


def test_a_proximal_step_leaves_alone_what_moves_nothing():
    system = torch.diag(weights(2.0, 0.0, 4.0))
    step = proximal_step(system[None], weights(2.0, 0.0, 4.0)[None], 1e-12)[0]
    assert step.tolist() == pytest.approx([1.0, 0.0, 1.0])
