"""DoRA's magnitudes: the mean, and the least-squares scale of the published direction."""

from __future__ import annotations

import pytest
import torch
from support.builders import D, K, drifted, normal, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error
from support.surrogate_reference import mean_dora_weight, unit_rows

from aggregator_service.aggregation import magnitudes as module
from aggregator_service.aggregation.magnitudes import Magnitudes, combine_magnitudes
from aggregator_service.aggregation.methods.ffa_lora import FFALoRA
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part

W3 = weights(1, 2, 3)


def frozen(d=D, k=K):
    return 0.5 * normal(77, d, k)


def vectors(count, d=D):
    return [normal(300 + u, d).abs() + 0.5 for u in range(count)]


def dora(members, magnitudes, w, base=None, **more):
    rows = None if base is None else (lambda begin, end: base[begin:end])
    extras = [{Part.MAGNITUDE: m} for m in magnitudes]
    return ModuleCohort.of(members, w, extras=extras, base_rows=rows, **more)


def test_one_row_worked_by_hand():
    # W0 = (1, 0). The clients' rows are (1, 1) and (1, -1), of length m = 2 and 4: the weights
    # are sqrt(2) (1, 1) and sqrt(8) (1, -1). Along the new row (1, 0) their mean is
    # (sqrt(2) + 2 sqrt(2)) / 2; the mean of the magnitudes is 3.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(torch.tensor([[0.0, a]]).double(), one) for a in (1.0, -1.0)]
    cohort = dora(members, [weights(2), weights(4)], weights(1, 1), weights(1, 0)[None])
    new = LoraFactors(torch.zeros(1, 2, dtype=torch.float64), one)
    fitted, mean = (
        combine_magnitudes(cohort, new, rule)
        for rule in (Magnitudes.LEAST_SQUARES, Magnitudes.MEAN)
    )
    assert float(fitted) == pytest.approx(1.5 * 2**0.5, rel=1e-15)
    assert float(mean) == 3.0


def test_the_mean_is_weighted_and_needs_no_frozen_weight():
    m = vectors(3)
    cohort = dora(unrelated([4] * 3), m, W3)
    expected = (m[0] + 2 * m[1] + 3 * m[2]) / 6
    torch.testing.assert_close(combine_magnitudes(cohort, start(), Magnitudes.MEAN), expected)
    torch.testing.assert_close(
        combine_magnitudes(cohort, start(), Magnitudes.LEAST_SQUARES), expected
    )


@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 4, 20]])
def test_least_squares_is_the_dense_least_squares_solution_row_by_row(ranks):
    members, m, base, new = unrelated(ranks), vectors(3), frozen(), start(seed=9)
    found = combine_magnitudes(dora(members, m, W3, base), new, Magnitudes.LEAST_SQUARES)
    goal = mean_dora_weight(members, m, W3, base)
    rows = unit_rows(base + new.delta_weight())
    for j in range(D):
        dense = torch.linalg.lstsq(rows[j][:, None], goal[j][:, None]).solution
        assert float(found[j]) == pytest.approx(float(dense), rel=1e-10)


def test_least_squares_is_nearer_to_the_mean_weight_than_the_mean():
    members, m, base, new = drifted(3), vectors(3), frozen(), start(seed=9)
    cohort, goal = dora(members, m, W3, base), mean_dora_weight(members, m, W3, base)
    gaps = [
        float(
            (
                combine_magnitudes(cohort, new, rule)[:, None]
                * unit_rows(base + new.delta_weight())
                - goal
            ).norm()
        )
        for rule in (Magnitudes.LEAST_SQUARES, Magnitudes.MEAN)
    ]
    assert gaps[0] < 0.999 * gaps[1]


def test_the_exact_mean_of_products_is_not_the_mean_of_doras_weights():
    # One A for all: the mean of B is T itself, and the row norms are in the way all the same.
    a, m, base = normal(5, 4, K), vectors(3), frozen()
    members = [LoraFactors(a, normal(60 + u, D, 4)) for u in range(3)]
    cohort, goal = dora(members, m, W3, base), mean_dora_weight(members, m, W3, base)
    published = combine(FFALoRA(), members, W3).factors
    exact = published.delta_weight()
    assert relative_error(exact, ideal(members, W3)) < 100 * EPS
    for rule in Magnitudes:
        weight = combine_magnitudes(cohort, published, rule)[:, None] * unit_rows(base + exact)
        assert relative_error(weight, goal) > 0.05


def test_clients_that_agree_keep_their_magnitude():
    one, m = start(), vectors(1)[0]
    cohort = dora([one] * 3, [m] * 3, W3, frozen())
    for rule in Magnitudes:
        torch.testing.assert_close(combine_magnitudes(cohort, one, rule), m, rtol=1e-13, atol=0)


def test_what_has_been_added_to_the_base_model_counts_in_every_direction():
    members, m, base, new = unrelated([4] * 3), vectors(3), frozen(), start(seed=9)
    before, after = start(r=2, seed=20), start(r=5, seed=30)
    cohort = dora(members, m, W3, base, start=GlobalModule(factors=start(), base=before))
    found = combine_magnitudes(cohort, new, Magnitudes.LEAST_SQUARES, base=after)
    goal = mean_dora_weight(members, m, W3, base + before.delta_weight())
    rows = unit_rows(base + after.delta_weight() + new.delta_weight())
    torch.testing.assert_close(found, (rows * goal).sum(dim=1))


def test_blocks_of_rows_change_nothing(monkeypatch):
    members, m, base, new = unrelated([4] * 3), vectors(3), frozen(), start(seed=9)
    asked = []

    def rows(begin, end):
        asked.append((begin, end))
        return base[begin:end]

    cohort = ModuleCohort.of(members, W3, extras=[{Part.MAGNITUDE: v} for v in m], base_rows=rows)
    whole = combine_magnitudes(cohort, new, Magnitudes.LEAST_SQUARES)
    assert asked == [(0, D)]
    asked.clear()
    monkeypatch.setattr(module, "_BLOCK_NUMBERS", 7 * K)
    pieces = combine_magnitudes(cohort, new, Magnitudes.LEAST_SQUARES)
    assert asked == [(0, 7), (7, 14), (14, 21), (21, D)]
    torch.testing.assert_close(pieces, whole, rtol=100 * EPS, atol=0)


def test_a_row_without_direction_takes_the_mean():
    base = frozen()
    base[3] = 0
    new = start(seed=9)
    new.b_DR[3] = 0
    m = vectors(3)
    found = combine_magnitudes(dora(unrelated([4] * 3), m, W3, base), new, Magnitudes.LEAST_SQUARES)
    assert float(found[3]) == pytest.approx(float((m[0] + 2 * m[1] + 3 * m[2])[3] / 6))
    assert bool(torch.isfinite(found).all())


def test_magnitudes_are_float64_whatever_was_sent():
    members = [f.to(torch.bfloat16) for f in unrelated([4] * 3)]
    m = [v.bfloat16() for v in vectors(3)]
    cohort = dora(members, m, W3, frozen())
    for rule in Magnitudes:
        assert combine_magnitudes(cohort, start(), rule).dtype == torch.float64
