"""optimal: Eckart and Young's adapter."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, rotated_copies, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, best_of_rank, ideal, relative_error, tail_norm

from aggregator_service.aggregation.compression.truncate import Core
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.spare_components import FRESH_ROW_NORM
from fedlora.adapters.factors import LoraFactors

both_cores = pytest.mark.parametrize("core", [Core.AUTO, Core.QR, Core.GRAM])


def solve(cohort, w, rank, **options):
    return combine(Optimal(**options), cohort, w, rank=rank, seed=1)


def test_two_clients_worked_by_hand():
    # T = diag(3, 1) from two orthogonal clients of weight 1/2: rank 1 keeps the 3.
    one = LoraFactors(weights(1, 0)[None], weights(6, 0)[:, None])
    two = LoraFactors(weights(0, 1)[None], weights(0, 2)[:, None])
    result = solve([one, two], weights(1, 1), 1)
    expected = torch.tensor([[3.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(result.factors.delta_weight(), expected, rtol=0, atol=10 * EPS)
    assert result.measurements["truncation_error"] == pytest.approx(1 / 10**0.5)
    # (3 + 1)^2 / (9 + 1)
    assert result.measurements["effective_rank"] == pytest.approx(1.6)


@both_cores
@pytest.mark.parametrize("rank", [1, 3, 4, 9, 11])
def test_every_core_gives_the_truncated_dense_decomposition(core, rank):
    cohort, w = unrelated([4, 2, 5]), weights(1, 2, 3)
    result = solve(cohort, w, rank, core=core).factors
    expected = best_of_rank(ideal(cohort, w), rank)
    assert relative_error(result.delta_weight(), expected) < 1e-9


@both_cores
def test_the_gauge_of_the_clients_does_not_matter(core):
    cohort, w = unrelated([4] * 3), weights(1, 2, 3)
    turned = []
    for u, f in enumerate(cohort):
        g = normal(70 + u, 4, 4)
        turned.append(LoraFactors(torch.linalg.solve(g, f.a_RK), f.b_DR @ g))
    straight, other = (solve(c, w, 4, core=core).factors for c in (cohort, turned))
    assert relative_error(other.delta_weight(), straight.delta_weight()) < 1e-9
    averaged = combine(FedIT(), turned, w, rank=4).factors
    before = combine(FedIT(), cohort, w, rank=4).factors
    assert relative_error(averaged.delta_weight(), before.delta_weight()) > 0.1


def test_ranks_are_nested():
    cohort, w = unrelated([4] * 3), weights(1, 2, 3)
    large, small = (solve(cohort, w, q).factors for q in (8, 3))
    torch.testing.assert_close(large.a_RK[:3], small.a_RK, rtol=0, atol=1e-12)
    torch.testing.assert_close(large.b_DR[:, :3], small.b_DR, rtol=0, atol=1e-12)


def test_its_error_is_the_tail_of_the_singular_values():
    cohort, w = unrelated([4] * 4), weights(4, 3, 2, 1)
    target = ideal(cohort, w)
    result = solve(cohort, w, 5)
    error = float((result.factors.delta_weight() - target).norm())
    assert error == pytest.approx(tail_norm(target, 5), rel=1e-11)
    assert result.measurements["truncation_error"] == pytest.approx(
        error / float(target.norm()), rel=1e-11
    )


def test_rotated_copies_are_undone():
    origin = start()
    cohort = rotated_copies(5, origin)
    result = solve(cohort, weights(1, 2, 3, 4, 5), 4).factors
    assert relative_error(result.delta_weight(), origin.delta_weight()) < 1e-13


def test_balanced_factors_have_equal_gram_matrices():
    result = solve(unrelated([4] * 3), weights(1, 2, 3), 4).factors
    gram_b, gram_a = result.b_DR.T @ result.b_DR, result.a_RK @ result.a_RK.T
    torch.testing.assert_close(gram_b, gram_a, rtol=0, atol=1e-12)
    torch.testing.assert_close(gram_a, torch.diag(gram_a.diagonal()), rtol=0, atol=1e-12)


@both_cores
def test_spare_components_have_fresh_rows_orthogonal_to_the_others(core):
    origin = start(r=2)
    result = solve([origin] * 3, weights(1, 1, 1), 5, core=core)
    assert result.measurements["kept_rank"] == 2.0
    spare = result.factors.a_RK[2:]
    gram = spare @ spare.T
    eye = torch.eye(3, dtype=torch.float64) * FRESH_ROW_NORM**2
    torch.testing.assert_close(gram, eye, rtol=0, atol=1e-12)
    assert not bool(result.factors.b_DR[:, 2:].any())
    assert float((spare @ result.factors.a_RK[:2].T).abs().max()) < 1e-8


def test_fresh_rows_depend_on_the_generator_alone():
    origin = start(r=2)
    one, two = (combine(Optimal(), [origin], weights(1), rank=4, seed=s) for s in (1, 2))
    assert not torch.equal(one.factors.a_RK[2:], two.factors.a_RK[2:])
    torch.testing.assert_close(
        one.factors.delta_weight(), two.factors.delta_weight(), rtol=0, atol=1e-12
    )
