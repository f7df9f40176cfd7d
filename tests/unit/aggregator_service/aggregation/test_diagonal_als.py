"""The diagonal member: its objective and its half-steps against dense least squares."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import drifted, normal, rotated_copies, start, unrelated, weights
from support.recipes import scalar_problem
from support.reference import scalar_objective
from support.surrogate_reference import (
    componentwise_copies,
    dense_diagonal_als,
    diagonal_objective,
)

from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.coefficients import to_blocks
from aggregator_service.aggregation.diagonal_als import DiagonalProblem
from fedlora.adapters.factors import LoraFactors


def problem(cohort, w, ridge=1e-8):
    return DiagonalProblem(CentredCohort.of(cohort, w / w.sum()), ridge=ridge)


def at_weights(cohort, w):
    return (w / w.sum()).expand(max(f.rank for f in cohort), -1)


def test_two_clients_of_two_components_worked_by_hand():
    # Components do not mix: A_u = diag(a_u), B_u = diag(b_u). Entry a of B A is
    # (p1 b1 + p2 b2)(q1 a1 + q2 a2), and T = diag((2 * 1 + 1 * 2) / 2, (1 * 4 + 4 * 1) / 2).
    # The factor mean gives 1.5 * 1.5 = 2.25 and 2.5 * 2.5 = 6.25: J = 0.25^2 + 2.25^2.
    cohort = [
        LoraFactors(torch.diag(weights(*a)), torch.diag(weights(*b)))
        for a, b in [((1.0, 4.0), (2.0, 1.0)), ((2.0, 1.0), (1.0, 4.0))]
    ]
    w = weights(1, 1)
    task, begin = problem(cohort, w), at_weights(cohort, w)
    assert task.objective(*(to_blocks(begin),) * 2) == pytest.approx(0.0625 + 5.0625, rel=1e-14)
    found = task.solve(begin, begin, max_sweeps=200, tolerance=0.0)
    b = sum(f.b_DR * found.p_RU[:, u] for u, f in enumerate(cohort))
    a = sum(found.q_RU[:, u, None] * f.a_RK for u, f in enumerate(cohort))
    torch.testing.assert_close(b @ a, torch.diag(weights(2, 4)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 4, 3]])
def test_the_objective_from_gram_blocks_is_the_dense_one(ranks):
    cohort, w = unrelated(ranks), weights(3, 1, 2)
    padded = [f.padded(4) for f in cohort]
    p, q = normal(1, 4, 3), normal(2, 4, 3)
    from_gram = problem(cohort, w).objective(to_blocks(p, w / w.sum()), to_blocks(q))
    assert from_gram == pytest.approx(diagonal_objective(padded, w, p, q), rel=1e-12)


def test_equal_numbers_in_all_components_give_the_scalar_objective():
    cohort, w, p, q = unrelated([4] * 3), weights(3, 1, 2), normal(1, 3), normal(2, 3)
    wide = [to_blocks(c).expand(4, -1) for c in (p, q)]
    found = problem(cohort, w).objective(*wide)
    scalar = scalar_problem(cohort, w / w.sum())
    assert found == pytest.approx(
        float(scalar.objective(to_blocks(p)[None], to_blocks(q)[None])), rel=1e-12
    )
    assert found == pytest.approx(scalar_objective(cohort, w, p, q), rel=1e-12)


@pytest.mark.parametrize("ranks", [[4] * 3, [2, 4, 3]])
def test_contracted_over_components_its_equations_are_those_of_the_scalars(ranks):
    # M_scalar = K M K^T and g_scalar = K g, with K summing over the components of a block.
    cohort, w = unrelated(ranks), weights(1, 2, 3)
    wide, narrow = problem(cohort, w), scalar_problem(cohort, w / w.sum())
    n, r = len(cohort) + 1, max(ranks)
    x_N, y_N = normal(70, n), normal(71, n)
    for side in ("left", "right"):
        own, other = ("_b", "_a") if side == "left" else ("_a", "_b")
        big, long = wide._equations(
            getattr(wide, own), getattr(wide, other), x_N.expand(r, n), y_N.expand(r, n)
        )
        small, short = narrow._equations(
            getattr(narrow, own), getattr(narrow, other), x_N[None], y_N[None]
        )
        folded = big.reshape(r, n, r, n).sum(dim=(0, 2))
        torch.testing.assert_close(folded, small[0], rtol=1e-11, atol=1e-11 * float(small.norm()))
        along = long.reshape(r, n).sum(dim=0)
        torch.testing.assert_close(along, short[0], rtol=1e-11, atol=1e-11 * float(short.norm()))


def test_every_half_step_is_a_dense_least_squares_step():
    cohort, w = unrelated([3] * 4), weights(1, 2, 3, 4)
    begin = normal(7, 3, 4)
    dense = dense_diagonal_als(cohort, w, begin, begin, sweeps=3)
    for sweeps in (1, 2, 3):
        found = problem(cohort, w, ridge=1e-13).solve(
            begin, begin, max_sweeps=sweeps, tolerance=0.0
        )
        assert found.objective == pytest.approx(dense[2 * sweeps], rel=1e-7)
        assert found.sweeps == sweeps


def test_the_objective_never_increases():
    for cohort in (unrelated([4] * 5), rotated_copies(5, start(), noise=0.02)):
        w = weights(1, 2, 3, 4, 5)
        task, begin, last = problem(cohort, w), at_weights(cohort, w), math.inf
        for sweeps in range(1, 30):
            found = task.solve(begin, begin, max_sweeps=sweeps, tolerance=0.0)
            assert found.objective <= last
            last = found.objective


def test_copies_with_rescaled_components_are_undone():
    cohort, w = componentwise_copies(5, start()), weights(1, 2, 3, 4, 5)
    begin = at_weights(cohort, w)
    before = diagonal_objective(cohort, w, begin, begin)
    found = problem(cohort, w).solve(begin, begin, max_sweeps=200, tolerance=1e-8)
    # J falls to the rounding of its own terms.
    assert found.objective < 1e-14 * before


def test_the_objective_keeps_its_digits_when_clients_barely_differ():
    near, far = (drifted(4, drift=drift) for drift in (2.0**-20, 2.0**-10))
    w = weights(1, 1, 1, 1)
    found = []
    for cohort in (near, far):
        begin = at_weights(cohort, w)
        solved = problem(cohort, w).solve(begin, begin, max_sweeps=50, tolerance=1e-8)
        found.append(solved.objective)
    # To leading order errors are quadratic in the drift, and J their square.
    assert found[0] / found[1] == pytest.approx(2.0**-40, rel=1e-2)


def test_the_solution_does_not_depend_on_how_components_are_scaled():
    cohort, w = unrelated([3] * 3), weights(1, 2, 3)
    t, begin = weights(1e-3, 1.0, 1e2)[:, None], normal(4, 3, 3)
    one, other = (
        problem(cohort, w).solve(begin / s, begin * s, max_sweeps=5, tolerance=0.0)
        for s in (torch.ones(3, 1), t)
    )
    assert one.objective == pytest.approx(other.objective, rel=1e-6)
    torch.testing.assert_close(one.p_RU.norm(dim=1), one.q_RU.norm(dim=1))
    assert bool((one.p_RU.sum(dim=1) >= 0).all())


def test_a_system_without_full_rank_is_solved():
    # Equal clients, and a component that nobody uses: all rows of the system but one are zero.
    one = start(r=2)
    cohort, w = [one.padded(3)] * 3, weights(1, 2, 3)
    begin = at_weights(cohort, w)
    found = problem(cohort, w).solve(begin, begin, max_sweeps=10, tolerance=0.0)
    assert found.objective == 0.0
    assert bool(torch.isfinite(found.p_RU).all())


def test_a_client_that_blew_up_does_not_end_the_search():
    # Beside it the small client is rounding, and its system has negative eigenvalues.
    blown, small = drifted(2)
    cohort = [LoraFactors(blown.a_RK * 1e9, blown.b_DR), small]
    alone = weights(0, 1).expand(4, -1)
    found = problem(cohort, weights(1, 1)).solve(alone, alone, max_sweeps=5, tolerance=0.0)
    assert bool(torch.isfinite(found.p_RU).all() and torch.isfinite(found.q_RU).all())
