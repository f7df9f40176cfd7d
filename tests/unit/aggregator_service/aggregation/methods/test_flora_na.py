"""FLoRA-NA: its objective, its solver, and the readings taken where the paper is silent."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import (
    drifted,
    normal,
    rescaled_copies,
    rotated_copies,
    start,
    unrelated,
    weights,
)
from support.recipes import combine, scalar_problem
from support.reference import (
    EPS,
    dense_scalar_als,
    ideal,
    mean_product,
    relative_error,
    scalar_objective,
    tail_norm,
)
from support.surrogate_reference import mean_dora_weight, unit_rows

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.coefficients import concentration, to_blocks
from aggregator_service.aggregation.magnitudes import Magnitudes
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.flora_na import Coefficients, FLoRANA, Hadamard
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError


def problem(cohort, w, ridge=1e-8):
    return scalar_problem(cohort, w / w.sum(), ridge=ridge)


def solve(cohort, w, **options):
    return combine(FLoRANA(**options), cohort, w)


def test_two_clients_worked_by_hand():
    # B A = (p1 2 + p2 1)(q1 1 + q2 2) with T = (2 * 1 + 1 * 2) / 2 = 2: reachable exactly,
    # whereas the factor mean gives 1.5 * 1.5 = 2.25.
    cohort = [
        LoraFactors(torch.tensor([[a]]).double(), torch.tensor([[b]]).double())
        for a, b in [(1.0, 2.0), (2.0, 1.0)]
    ]
    assert problem(cohort, weights(1, 1)).objective_at_mean == pytest.approx(0.0625, rel=1e-15)
    result = solve(cohort, weights(1, 1)).factors
    assert float(result.delta_weight()) == pytest.approx(2.0, rel=1e-7)


@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 4, 3]])
def test_the_objective_from_gram_blocks_is_the_dense_one(ranks):
    cohort, w = unrelated(ranks), weights(3, 1, 2)
    rank = max(ranks)
    padded = [f.padded(rank) for f in cohort]
    p, q = normal(1, 3), normal(2, 3)
    from_gram = problem(cohort, w).objective(to_blocks(p[None], w / w.sum()), to_blocks(q[None]))
    assert float(from_gram) == pytest.approx(scalar_objective(padded, w, p, q), rel=1e-12)


def test_at_the_data_weights_the_objective_is_the_factor_means_error():
    cohort, w = unrelated([4] * 4), weights(1, 2, 3, 4)
    dense = float((mean_product(cohort, w) - ideal(cohort, w)).square().sum())
    assert problem(cohort, w).objective_at_mean == pytest.approx(dense, rel=1e-12)


def test_the_factor_means_error_keeps_its_digits_when_clients_barely_differ():
    # Expanding |BA|^2 - 2<BA,T> + |T|^2 would leave no digit of a relative error of 1e-12.
    near, far = (drifted(4, drift=drift) for drift in (2.0**-20, 2.0**-10))
    w = weights(1, 1, 1, 1)
    ratio = problem(near, w).objective_at_mean / problem(far, w).objective_at_mean
    assert ratio == pytest.approx(2.0**-40, rel=1e-6)


def test_every_half_step_is_a_dense_least_squares_step():
    cohort, w = unrelated([4] * 5), weights(1, 2, 3, 4, 5)
    begin = normal(7, 5)
    dense = dense_scalar_als(cohort, w, begin, begin, sweeps=3)
    for sweeps in (1, 2, 3):
        (found,) = problem(cohort, w, ridge=1e-13).solve(
            (begin[None], begin[None]), max_sweeps=sweeps, tolerance=0.0
        )
        assert found.objective == pytest.approx(dense.objectives[2 * sweeps], rel=1e-8)
        assert found.sweeps == sweeps


def test_the_objective_never_increases():
    for cohort in (unrelated([4] * 5), rotated_copies(5, start(), noise=0.02)):
        task, w = problem(cohort, weights(1, 2, 3, 4, 5)), normal(3, 1, 5)
        last = math.inf
        for sweeps in range(1, 30):
            (found,) = task.solve((w, w), max_sweeps=sweeps, tolerance=0.0)
            assert found.objective <= last * (1 + 1e-12)
            last = found.objective


def test_rescaled_copies_of_one_client_are_undone():
    origin = start()
    cohort, w = rescaled_copies([0.1, 1.0, 7.0, -3.0], origin), weights(1, 2, 3, 4)
    assert relative_error(mean_product(cohort, w), origin.delta_weight()) > 0.1
    result = solve(cohort, w)
    # J reaches its rounding floor, and errors are roots of J.
    assert relative_error(result.factors.delta_weight(), origin.delta_weight()) < 1e-6


def test_the_best_of_the_starts_is_near_the_best_of_fifteen_for_rotated_copies():
    cohort = rotated_copies(6, start(d=32, k=24), noise=0.02)
    w, generator = weights(*[1.0] * 6), torch.Generator().manual_seed(5)
    target = ideal(cohort, w)
    found = (solve(cohort, w).factors.delta_weight() - target).norm()
    task = problem(cohort, w)
    oracle = task.solve(task.starts(15, generator), max_sweeps=200, tolerance=1e-8)
    best = math.sqrt(min(s.objective for s in oracle))
    assert float(found) <= 1.6 * best
    assert float(found) < 0.2 * float((mean_product(cohort, w) - target).norm())


def test_the_single_client_start_is_the_best_multiple_of_one_client():
    cohort, w = unrelated([4] * 4), weights(1, 1, 5, 1)
    target = ideal(cohort, w)
    gaps = []
    for f in cohort:
        product = f.delta_weight()
        c = float((product * target).sum() / product.square().sum())
        gaps.append(float((c * product - target).norm()))
    p, q = problem(cohort, w).starts(0, torch.Generator())
    chosen = scalar_objective(cohort, w, p[1], q[1])
    assert math.sqrt(chosen) == pytest.approx(min(gaps), rel=1e-12)
    assert int(p[1].argmax()) == gaps.index(min(gaps))


@pytest.mark.parametrize(
    "cohort",
    [drifted(4), unrelated([4] * 4), rotated_copies(4, start(), noise=0.02), unrelated([2, 4, 3])],
    ids=["drifted", "unrelated", "rotated", "mixed"],
)
def test_the_solution_is_no_farther_than_the_best_multiple_of_any_client(cohort):
    w = weights(*range(1, len(cohort) + 1))
    target = ideal(cohort, w)
    gaps = []
    for f in cohort:
        delta = f.delta_weight()
        best = (target * delta).sum() / delta.square().sum()
        gaps.append(float((best * delta - target).square().sum()))
    found = combine(FLoRANA(), cohort, w, publication=Publication(dtype=torch.float64))
    reached = float((found.factors.delta_weight() - target).square().sum())
    assert reached <= min(gaps) * (1 + 1e-9)


def test_the_solution_does_not_depend_on_how_a_pair_is_scaled():
    cohort, w = unrelated([4] * 3), weights(1, 2, 3)
    task, q = problem(cohort, w), normal(4, 1, 3)
    one, other = (task.solve((q / t, q * t), max_sweeps=5, tolerance=0.0)[0] for t in (1.0, 1e3))
    assert one.objective == pytest.approx(other.objective, rel=1e-6)
    assert float(one.p_U.norm()) == pytest.approx(float(one.q_U.norm()), rel=1e-12)
    assert float(one.p_U.sum()) >= 0


def test_scales_are_inside_b_and_used_once():
    # lora_alpha / r of 2, 0.5 and 4: folded factors are all that the objective sees.
    raw, w = drifted(3), weights(1, 2, 3)
    folded = [
        LoraFactors.fold(f.a_RK, f.b_DR, s) for f, s in zip(raw, (2.0, 0.5, 4.0), strict=True)
    ]
    target = sum(w[u] / 6 * s * raw[u].delta_weight() for u, s in enumerate((2.0, 0.5, 4.0)))
    dense = float((mean_product(folded, w) - target).square().sum())
    assert problem(folded, w).objective_at_mean == pytest.approx(dense, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drift", [1e-6, 1e-3, 0.3, 3.0])
def test_it_is_never_worse_than_fedit_once_both_are_rounded(dtype, drift):
    for seed in range(6):
        cohort, w = drifted(4, drift=drift, seed=seed), weights(4, 3, 2, 1)
        target = ideal(cohort, w)
        publication = Publication(dtype=dtype, scaling=2.0)
        ours, theirs = (
            combine(m, cohort, w, rank=4, publication=publication).factors
            for m in (FLoRANA(), FedIT())
        )
        coordinates = CentredCohort.of(cohort, w / w.sum())
        errors = [coordinates.error_of(publication.read_back(f)) for f in (ours, theirs)]
        assert errors[0] <= errors[1]
        dense = float((publication.read_back(ours).delta_weight() - target).norm())
        assert errors[0] == pytest.approx(dense, rel=1e-6)


@pytest.mark.parametrize("coefficients", [Coefficients.SCALAR, Coefficients.DIAGONAL])
@pytest.mark.parametrize("w", [weights(1, 1, 1), weights(1, 2, 3, 4), weights(1e-6, 5)])
def test_nor_beside_a_client_that_blew_up(w, coefficients):
    # The small clients are differences of large blocks, and their products rounding.
    publication = Publication(dtype=torch.float32)
    for seed in range(3):
        blown, *others = drifted(len(w), seed=seed)
        cohort = [LoraFactors(blown.a_RK * 1e8, blown.b_DR), *others]
        ours, theirs = (
            combine(m, cohort, w, rank=4, publication=publication).factors
            for m in (FLoRANA(coefficients=coefficients), FedIT())
        )
        target = ideal(cohort, w)
        errors = [
            float((publication.read_back(f).delta_weight() - target).norm()) for f in (ours, theirs)
        ]
        assert errors[0] <= errors[1] * (1 + 1e-6)


def test_the_factor_mean_is_kept_where_nothing_beats_it():
    common = normal(5, 4, 17)
    cohort = [LoraFactors(common, normal(60 + u, 24, 4)) for u in range(4)]
    w = weights(4, 3, 2, 1)
    kept, mean = (combine(m, cohort, w, rank=4) for m in (FLoRANA(), FedIT()))
    assert kept.measurements["kept_factor_mean"] == 1.0
    assert kept.measurements["winning_start"] == 0.0
    assert torch.equal(kept.factors.a_RK, mean.factors.a_RK)
    assert torch.equal(kept.factors.b_DR, mean.factors.b_DR)


def test_a_start_must_be_meaningfully_better_to_win():
    # All starts meet in one point: the one nearest the factor mean is taken.
    cohort, w = drifted(5, drift=0.1), weights(1, 2, 3, 4, 5)
    found = solve(cohort, w, random_starts=8).measurements
    assert found["winning_start"] == 0.0
    assert found["kept_factor_mean"] == 0.0


def test_measurements_tell_what_the_solver_did():
    cohort, w = drifted(4), weights(1, 1, 1, 1)
    found = solve(cohort, w, random_starts=3).measurements
    assert found["starts"] == 5.0
    assert 0 <= found["winning_start"] < 5
    assert 1 <= found["sweeps"] <= 200
    assert 0.25 <= found["concentration"] <= 0.5
    assert all(math.isfinite(v) for v in found.values())


@pytest.mark.parametrize("coefficients", [Coefficients.SCALAR, Coefficients.DIAGONAL])
def test_reported_coefficients_make_what_is_published(coefficients):
    cohort, names = unrelated([4] * 3), ["anna", "ben", "carl"]
    method = FLoRANA(coefficients=coefficients, report_coefficients=True)
    found = combine(method, cohort, weights(1, 2, 3), names=names)
    assert found.measurements["member"] > 0
    told = {k: v for k, v in found.measurements.items() if k.endswith("]")}
    p, q = (
        [
            weights(*[told[f"{letter}[{n},{i}]"] for i in range(1, 5)])
            if coefficients is Coefficients.DIAGONAL
            else told[f"{letter}[{n}]"]
            for n in names
        ]
        for letter in "pq"
    )
    b = sum(f.b_DR * c for f, c in zip(cohort, p, strict=True))
    a = sum((f.a_RK.T * c).T for f, c in zip(cohort, q, strict=True))
    torch.testing.assert_close(found.factors.b_DR, b)
    torch.testing.assert_close(found.factors.a_RK, a)
    plain = combine(FLoRANA(coefficients=coefficients), cohort, weights(1, 2, 3), names=names)
    assert not any(name.endswith("]") for name in plain.measurements)


def test_concentration_says_whether_one_client_is_being_published():
    even = weights(1, 1, 1, 1)
    assert concentration(even, even) == 0.25
    one = weights(0, 1, 0, 0)
    assert concentration(one, one) == 1.0


def test_a_cap_on_concentration_keeps_single_clients_from_being_published():
    cohort, w = rotated_copies(6, start(d=32, k=24), noise=0.02), weights(*[1.0] * 6)
    free, capped = solve(cohort, w), solve(cohort, w, max_concentration=0.3)
    assert free.measurements["concentration"] > 0.9
    assert capped.measurements["concentration"] <= 0.3


def test_mixed_ranks_are_padded_with_zero_components():
    cohort, w = unrelated([2, 4]), weights(1, 1)
    result = solve(cohort, w)
    target = ideal(cohort, w)
    error = float((result.factors.delta_weight() - target).norm())
    padded = [f.padded(4) for f in cohort]
    same = solve(padded, w)
    torch.testing.assert_close(
        result.factors.delta_weight(), same.factors.delta_weight(), rtol=0, atol=1000 * EPS
    )
    assert tail_norm(target, 4) <= error <= float((mean_product(cohort, w) - target).norm())


def test_its_basis_stays_that_of_the_clients_for_ordinary_drift():
    cohort, w = drifted(5, drift=0.1), weights(1, 2, 3, 4, 5)
    result = solve(cohort, w).factors
    mean = combine(FedIT(), cohort, w, rank=4).factors
    rows = torch.nn.functional.cosine_similarity(result.a_RK, mean.a_RK, dim=1)
    assert bool((rows > 0.99).all())


@pytest.mark.parametrize(
    "options",
    [{"max_sweeps": 0}, {"random_starts": -1}, {"ridge": 0.0}, {"max_concentration": 1.5}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(FedLoraError, match="flora_na needs"):
        FLoRANA(**options)


# --- richer coefficients -------------------------------------------------------------------


def test_richer_coefficients_are_never_worse_and_full_ones_reach_the_bound():
    cohort, w = unrelated([4] * 5), weights(1, 2, 3, 4, 5)
    goal = ideal(cohort, w)
    scalar, diagonal, full = (
        float((solve(cohort, w, coefficients=c).factors.delta_weight() - goal).norm())
        for c in Coefficients
    )
    assert full < 0.99 * diagonal < 0.99**2 * scalar
    assert full == pytest.approx(tail_norm(goal, 4), rel=1e-10)


# --- HiRA and DoRA -------------------------------------------------------------------------

W0 = normal(88, 24, 17) * torch.logspace(-1, 1, 24, dtype=torch.float64)[:, None]


def rows(begin, end):
    return W0[begin:end]


def test_the_mean_update_of_hira_is_the_frozen_weight_times_t():
    # So J applies to HiRA as it stands, whatever W0 is.
    cohort, w = unrelated([4] * 3), weights(3, 1, 2)
    mean = sum(x * (W0 * f.delta_weight()) for x, f in zip(w / w.sum(), cohort, strict=True))
    torch.testing.assert_close(mean, W0 * ideal(cohort, w))


def test_the_weighted_fit_is_nearer_in_the_weighted_norm_and_farther_in_the_plain_one():
    cohort, w = unrelated([4] * 4), weights(1, 2, 3, 4)
    goal = ideal(cohort, w)
    plain = solve(cohort, w).factors.delta_weight()
    result = combine(FLoRANA(hadamard=Hadamard.WEIGHTED), cohort, w, base_rows=rows)
    weighted = result.factors.delta_weight()
    assert float((W0 * (weighted - goal)).norm()) < 0.99 * float((W0 * (plain - goal)).norm())
    assert float((weighted - goal).norm()) > float((plain - goal).norm())
    assert result.measurements["weighted_fit"] == 1.0


def test_without_the_frozen_weight_the_plain_fit_is_used_and_said():
    cohort, w = unrelated([4] * 4), weights(1, 2, 3, 4)
    result = combine(FLoRANA(hadamard=Hadamard.WEIGHTED), cohort, w)
    assert torch.equal(result.factors.b_DR, solve(cohort, w).factors.b_DR)
    assert result.measurements["weighted_fit"] == 0.0


def test_the_weighted_norm_takes_scalars_only():
    with pytest.raises(FedLoraError, match="got hadamard = weighted with coefficients = full"):
        FLoRANA(hadamard=Hadamard.WEIGHTED, coefficients=Coefficients.FULL)


def test_magnitudes_belong_to_the_direction_as_it_is_published():
    cohort, w = drifted(3), weights(1, 2, 3)
    m = [normal(300 + u, 24).abs() + 0.5 for u in range(3)]
    rough = Publication(dtype=torch.bfloat16)
    result = combine(
        FLoRANA(magnitudes=Magnitudes.LEAST_SQUARES),
        cohort,
        w,
        extras=[{Part.MAGNITUDE: v} for v in m],
        base_rows=rows,
        publication=rough,
    )
    read = rough.read_back(result.factors).delta_weight()
    expected = (unit_rows(W0 + read) * mean_dora_weight(cohort, m, w, W0)).sum(dim=1)
    torch.testing.assert_close(result.extras[Part.MAGNITUDE], expected)
    exact = (
        unit_rows(W0 + result.factors.delta_weight()) * mean_dora_weight(cohort, m, w, W0)
    ).sum(1)
    assert float((exact - expected).abs().max()) > 1e-6
    assert result.measurements["fitted_magnitudes"] == 1.0


def test_options_say_for_which_adapters_the_frozen_weight_is_read():
    assert FLoRANA().reads_base == frozenset()
    assert FLoRANA(hadamard=Hadamard.WEIGHTED).reads_base == {AdapterKind.HIRA}
    assert FLoRANA(magnitudes=Magnitudes.LEAST_SQUARES).reads_base == {AdapterKind.DORA}
