"""HiRA's weighted fit: objective and half-steps against dense least squares."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import D, K, drifted, normal, start, unrelated, weights
from support.recipes import scalar_problem
from support.reference import ideal
from support.surrogate_reference import dense_weighted_als, weighted_objective

from aggregator_service.aggregation import hadamard_als
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.hadamard_als import HadamardProblem
from fedlora.adapters.factors import LoraFactors


def frozen(d=D, k=K):
    """A weight whose rows and columns differ in size by orders of magnitude."""
    return normal(88, d, k) * torch.logspace(-1, 1, d, dtype=torch.float64)[:, None]


def problem(cohort, w, w0, ridge=1e-8):
    centred = CentredCohort.of(cohort, w / w.sum())
    return HadamardProblem(centred, lambda begin, end: w0[begin:end], ridge=ridge)


def test_two_clients_worked_by_hand():
    # A = (q1 + 2 q2)(1, 1), B = (2 p1 + p2, 2 p1 + 3 p2)^T; T has the rows (2, 4)^T x (1, 1).
    # W0 looks at the first row alone, where 2 p1 + p2 times q1 + 2 q2 can be 2 exactly.
    cohort = [
        LoraFactors(torch.tensor([[a, a]]).double(), torch.tensor(b).double())
        for a, b in [(1.0, [[2.0], [2.0]]), (2.0, [[1.0], [3.0]])]
    ]
    w0 = torch.tensor([[3.0, 3.0], [0.0, 0.0]]).double()
    w = weights(1, 1)
    # The factor mean has 1.5 * 1.5 there: 2 entries of 3 * 0.25.
    mean = LoraFactors(torch.tensor([[1.5, 1.5]]).double(), torch.tensor([[1.5], [2.5]]).double())
    task = problem(cohort, w, w0)
    assert task.objective_of(mean) == pytest.approx(2 * 0.75**2, rel=1e-14)
    found = task.solve(w / 2, w / 2, max_sweeps=50, tolerance=0.0)
    p, q = found.p_U, found.q_U
    assert float((2 * p[0] + p[1]) * (q[0] + 2 * q[1])) == pytest.approx(2.0, rel=1e-7)
    assert found.objective < 1e-14


def test_the_objective_is_the_dense_one():
    cohort, w, w0 = unrelated([4] * 3), weights(3, 1, 2), frozen()
    other = start(seed=40)
    dense = float((w0 * (other.delta_weight() - ideal(cohort, w))).square().sum())
    assert problem(cohort, w, w0).objective_of(other) == pytest.approx(dense, rel=1e-12)


def test_every_half_step_is_a_dense_least_squares_step():
    cohort, w, w0 = unrelated([4] * 4), weights(1, 2, 3, 4), frozen()
    begin = normal(7, 4)
    dense = dense_weighted_als(cohort, w, w0, begin, begin, sweeps=3)
    for sweeps in (1, 2, 3):
        found = problem(cohort, w, w0, ridge=1e-13).solve(
            begin, begin, max_sweeps=sweeps, tolerance=0.0
        )
        assert found.objective == pytest.approx(dense[2 * sweeps], rel=1e-8)
        assert found.sweeps == sweeps


def test_the_objective_reported_is_that_of_the_scalars_reported():
    cohort, w, w0 = unrelated([4] * 4), weights(1, 2, 3, 4), frozen()
    found = problem(cohort, w, w0).solve(w / 10, w / 10, max_sweeps=200, tolerance=1e-8)
    dense = weighted_objective(cohort, w, w0, found.p_U, found.q_U)
    assert found.objective == pytest.approx(dense, rel=1e-10)
    assert found.sweeps < 200


def test_the_objective_never_increases():
    cohort, w, w0, last = unrelated([4] * 5), weights(1, 2, 3, 4, 5), frozen(), math.inf
    for sweeps in range(1, 15):
        found = problem(cohort, w, w0).solve(w / 15, w / 15, max_sweeps=sweeps, tolerance=0.0)
        assert found.objective <= last
        last = found.objective


def test_with_equal_entries_of_the_weight_it_is_the_plain_problem():
    cohort, w, w0 = unrelated([4] * 4), weights(1, 2, 3, 4), torch.full((D, K), 3.0).double()
    begin = w / 10
    found = problem(cohort, w, w0).solve(begin, begin, max_sweeps=4, tolerance=0.0)
    plain = scalar_problem(cohort, begin)
    (same,) = plain.solve((begin[None], begin[None]), max_sweeps=4, tolerance=0.0)
    assert found.objective == pytest.approx(9 * same.objective, rel=1e-9)
    torch.testing.assert_close(found.p_U, same.p_U, rtol=1e-6, atol=1e-6)


def test_it_is_better_in_the_weighted_norm_than_the_plain_solution():
    cohort, w, w0 = unrelated([4] * 4), weights(1, 2, 3, 4), frozen()
    begin = w / 10
    plain = scalar_problem(cohort, begin)
    (same,) = plain.solve((begin[None], begin[None]), max_sweeps=200, tolerance=1e-10)
    before = weighted_objective(cohort, w, w0, same.p_U, same.q_U)
    found = problem(cohort, w, w0).solve(same.p_U, same.q_U, max_sweeps=200, tolerance=1e-8)
    assert found.objective < 0.9 * before


def test_the_objective_keeps_its_digits_when_clients_barely_differ():
    near, far = (drifted(4, drift=drift) for drift in (2.0**-20, 2.0**-10))
    w, w0 = weights(1, 1, 1, 1), frozen()
    found = [
        problem(cohort, w, w0).solve(w / 4, w / 4, max_sweeps=20, tolerance=1e-8).objective
        for cohort in (near, far)
    ]
    assert found[0] / found[1] == pytest.approx(2.0**-40, rel=1e-2)


def test_the_weight_is_read_in_blocks_of_rows(monkeypatch):
    cohort, w, w0 = unrelated([4] * 3), weights(3, 1, 2), frozen()
    whole = problem(cohort, w, w0).solve(w / 6, w / 6, max_sweeps=3, tolerance=0.0)
    asked = []

    def rows(begin, end):
        asked.append((begin, end))
        return w0[begin:end]

    monkeypatch.setattr(hadamard_als, "_BLOCK_NUMBERS", 7 * K * 4)
    task = HadamardProblem(CentredCohort.of(cohort, w / 6), rows, ridge=1e-8)
    pieces = task.solve(w / 6, w / 6, max_sweeps=3, tolerance=0.0)
    assert pieces.objective == pytest.approx(whole.objective, rel=1e-9)
    # Once before the first sweep, then twice a sweep.
    assert asked == [(0, 7), (7, 14), (14, 21), (21, D)] * 7


def test_a_weight_of_zeros_leaves_the_factor_mean():
    cohort, w = unrelated([4] * 3), weights(3, 1, 2)
    found = problem(cohort, w, torch.zeros(D, K).double()).solve(
        w / 6, w / 6, max_sweeps=5, tolerance=0.0
    )
    assert found.sweeps == 0
    torch.testing.assert_close(found.p_U, w / 6)
