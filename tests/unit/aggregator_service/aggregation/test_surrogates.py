"""The family of surrogates: which member is nearer, and what each of them undoes."""

from __future__ import annotations

import itertools

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
from support.reference import EPS, best_of_rank, ideal, mean_product, relative_error, tail_norm
from support.surrogate_reference import componentwise_copies

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.surrogates import (
    Member,
    Solver,
    Surrogate,
    SurrogateFamily,
    nearest,
)
from fedlora.adapters.factors import LoraFactors

COHORTS = {
    "drift": drifted(6),
    "tiny drift": drifted(6, drift=1e-4),
    "no common start": unrelated([4] * 6),
    "mixed ranks": unrelated([2, 4, 3, 1, 4, 4]),
    "rescaled": rescaled_copies([0.1, 1.0, 7.0, -3.0, 2.0, 0.5], start()),
    "rescaled components": componentwise_copies(6, start(), noise=0.02),
    "rotated": rotated_copies(6, start(), noise=0.02),
    "rank above the layer": unrelated([9] * 6, d=11, k=7),
    "rank deficient": [f.padded(6) for f in unrelated([2, 1, 2, 1, 2, 1])],
}
W6 = weights(1, 2, 3, 4, 5, 6)


def members(cohort, w, **options):
    family = SurrogateFamily(ModuleCohort.of(cohort, w), Solver(**options))
    scalar = family.scalar(torch.Generator().manual_seed(0))
    return [family.factor_mean(), scalar, family.diagonal(scalar), family.optimal()]


def errors(cohort, w):
    target = ideal(cohort, w)
    return [float((m.factors.delta_weight() - target).norm()) for m in members(cohort, w)]


@pytest.mark.parametrize("cohort", COHORTS.values(), ids=COHORTS)
def test_each_member_is_at_least_as_near_as_the_cheaper_one(cohort):
    found = errors(cohort, W6)
    # Sums of U products, each rounded: the members may miss their order by that much.
    noise = 100 * EPS * sum(float(f.b_DR.norm() * f.a_RK.norm()) for f in cohort)
    for cheap, dear in itertools.pairwise(found):
        assert dear <= cheap * (1 + 1e-12) + noise


@pytest.mark.parametrize("cohort", COHORTS.values(), ids=COHORTS)
def test_the_last_member_reaches_eckart_and_youngs_bound(cohort):
    rank, target = max(f.rank for f in cohort), ideal(cohort, W6)
    assert errors(cohort, W6)[3] == pytest.approx(
        tail_norm(target, rank), rel=1e-9, abs=1e-11 * float(target.norm())
    )


def test_every_member_differs_where_nothing_is_shared():
    # Otherwise the order above could be one of four equal things.
    found = errors(COHORTS["no common start"], W6)
    for cheap, dear in itertools.pairwise(found):
        assert dear < 0.995 * cheap


@pytest.mark.parametrize(
    ("cohort", "first"),
    [
        ("rescaled", Member.SCALAR),
        ("rescaled components", Member.DIAGONAL),
        ("rotated", Member.OPTIMAL),
    ],
)
def test_each_member_undoes_what_the_cheaper_one_cannot(cohort, first):
    # One product in several forms, with 2 % of noise, or none, on each factor.
    found = errors(COHORTS[cohort], W6)
    near = 0.003 * float(ideal(COHORTS[cohort], W6).norm())
    assert all(error < near for error in found[first:])
    assert all(error > 3 * near for error in found[:first])


def test_the_factor_mean_is_the_mean_of_the_factors():
    cohort = COHORTS["mixed ranks"]
    torch.testing.assert_close(
        members(cohort, W6)[0].factors.delta_weight(), mean_product(cohort, W6)
    )


def test_one_client_is_returned_by_every_member():
    client = start()
    for found in members([client], weights(3)):
        assert relative_error(found.factors.delta_weight(), client.delta_weight()) < 1000 * EPS


def test_equal_clients_are_returned_by_every_member():
    client = start()
    for found in members([client] * 4, weights(1, 2, 3, 4)):
        assert relative_error(found.factors.delta_weight(), client.delta_weight()) < 1000 * EPS


def test_only_the_optimum_does_not_see_a_change_of_the_clients_bases():
    cohort = COHORTS["drift"]
    turned = []
    for u, f in enumerate(cohort):
        g = normal(800 + u, 4, 4) + 3 * torch.eye(4)
        turned.append(LoraFactors(torch.linalg.solve(g, f.a_RK), f.b_DR @ g))
    for before, after in zip(members(cohort, W6), members(turned, W6), strict=True):
        gap = relative_error(after.factors.delta_weight(), before.factors.delta_weight())
        if before.member is Member.OPTIMAL:
            assert gap < 1e-10
        else:
            assert gap > 1e-3


def test_the_optimums_a_is_the_factor_means_projected_on_the_optimums_row_space():
    cohort = COHORTS["drift"]
    found, mean = members(cohort, W6)[3].factors, members(cohort, W6)[0].factors
    product = best_of_rank(ideal(cohort, W6), 4)
    rows = torch.linalg.svd(product).Vh[:4]
    torch.testing.assert_close(found.a_RK, mean.a_RK @ rows.T @ rows)
    torch.testing.assert_close(found.delta_weight(), product)


def test_spare_components_of_the_optimum_are_left_out():
    # Padded with zeros in both factors they could never learn.
    found = members(COHORTS["rank deficient"][:2], weights(1, 1))[3]
    assert found.factors.rank == found.measurements["kept_rank"] == 3


def test_nothing_learnt_is_nothing_published():
    cohort = [LoraFactors(f.a_RK, torch.zeros_like(f.b_DR)) for f in COHORTS["drift"]]
    for found in members(cohort, W6):
        assert not found.factors.delta_weight().any()
        assert found.factors.rank == 4


def test_a_cap_on_concentration_holds_for_every_member_made_of_coefficients():
    cohort = rotated_copies(6, start(d=32, k=24), noise=0.02)
    w = weights(*[1.0] * 6)
    _, free, freer, _ = members(cohort, w)
    _, scalar, diagonal, _ = members(cohort, w, max_concentration=0.3)
    assert max(free.measurements["concentration"], freer.measurements["concentration"]) > 0.3
    assert scalar.measurements["concentration"] <= 0.3
    assert diagonal.measurements["concentration"] <= 0.3


def test_the_nearest_is_decided_on_what_is_read_back():
    # Without rounding the second is nearer; bfloat16 has 8 bits and cannot hold it.
    one = torch.ones(1, 1, dtype=torch.float64)
    first, second = (
        Surrogate(member=m, factors=LoraFactors(one, one * b), measurements={})
        for m, b in ((Member.FACTOR_MEAN, 1.0), (Member.SCALAR, 1.0 + 2.0**-12))
    )

    def distance(factors):
        return abs(float(factors.delta_weight()) - 1.0 - 2.0**-12)

    exact, coarse = (Publication(dtype=t) for t in (torch.float64, torch.bfloat16))
    assert nearest([first, second], exact, distance) is second
    assert nearest([first, second], coarse, distance) is first


def test_what_is_no_number_is_never_nearest():
    one = torch.ones(1, 1, dtype=torch.float64)
    first, second = (
        Surrogate(member=m, factors=LoraFactors(one, one * b), measurements={})
        for m, b in ((Member.FACTOR_MEAN, 1.0), (Member.SCALAR, float("inf")))
    )
    publication = Publication(dtype=torch.float64)
    assert nearest([first, second], publication, lambda f: float((f.b_DR * 0).sum())) is first


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("drift", [0.3, 1e-2, 1e-4, 1e-6])
def test_where_it_is_clear_that_the_scalars_are_nearer_rounding_agrees(dtype, drift):
    rough = Publication(dtype=dtype)
    cohort = rescaled_copies([1.0, 1.0 + drift, 1.0 - drift], start())
    family = SurrogateFamily(ModuleCohort.of(cohort, weights(1, 2, 3)), Solver())
    scalar = family.scalar(torch.Generator().manual_seed(0))
    clear = family.is_clear(scalar, rough)
    # A gap of drift^2 against a rounding of 2^-24 or 2^-8.
    assert clear == (drift >= {torch.float32: 1e-2, torch.bfloat16: 0.3}[dtype])
    if clear:
        read = [rough.read_back(m.factors) for m in (scalar, family.factor_mean())]
        assert family.centred.error_of(read[0]) < family.centred.error_of(read[1])


def test_it_is_never_clear_in_half_precision():
    family = SurrogateFamily(ModuleCohort.of(unrelated([4] * 3), weights(1, 2, 3)), Solver())
    scalar = family.scalar(torch.Generator().manual_seed(0))
    assert family.is_clear(scalar, Publication(dtype=torch.float32))
    assert not family.is_clear(scalar, Publication(dtype=torch.float16))


def test_the_gain_that_is_told_is_the_one_that_is_there():
    cohort, w = unrelated([4] * 4), weights(1, 2, 3, 4)
    family = SurrogateFamily(ModuleCohort.of(cohort, w), Solver())
    scalar = family.scalar(torch.Generator().manual_seed(0))
    target = ideal(cohort, w)
    lost = [
        float((m.factors.delta_weight() - target).square().sum())
        for m in (family.factor_mean(), scalar)
    ]
    assert scalar.gain == pytest.approx(lost[0] - lost[1], rel=1e-9)
