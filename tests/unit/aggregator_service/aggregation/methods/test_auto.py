"""auto: the cheapest member that is near enough, decided on what is published."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import drifted, rescaled_copies, rotated_copies, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, relative_error, tail_norm
from support.surrogate_reference import componentwise_copies

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.methods.auto import Auto
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.flora_na import Coefficients, FLoRANA
from aggregator_service.aggregation.methods.optimal import Optimal
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError

W6 = weights(1, 2, 3, 4, 5, 6)


def test_the_factor_mean_worked_by_hand():
    # T = (2 * 1 + 1 * 2) / 2 = 2 and the factor mean is 1.5 * 1.5 = 2.25: off by an eighth of T.
    cohort = [
        LoraFactors(torch.tensor([[a]]).double(), torch.tensor([[b]]).double())
        for a, b in [(1.0, 2.0), (2.0, 1.0)]
    ]
    loose, tight = (combine(Auto(tolerance=t), cohort, weights(1, 1)) for t in (0.125, 0.12))
    assert float(loose.factors.delta_weight()) == 2.25
    assert loose.measurements["relative_error"] == pytest.approx(0.125, rel=1e-14)
    assert float(tight.factors.delta_weight()) == pytest.approx(2.0, rel=1e-7)
    assert (loose.measurements["member"], tight.measurements["member"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("cohort", "member", "tolerance"),
    [
        (drifted(6, drift=0.1), 0, 0.05),
        (rescaled_copies([0.1, 1.0, 7.0, -3.0, 2.0, 0.5], start()), 1, 0.05),
        (componentwise_copies(6, start(), noise=0.02), 2, 0.005),
        (rotated_copies(6, start(), noise=0.02), 3, 0.001),
    ],
    ids=["drift", "rescaled", "rescaled components", "rotated"],
)
def test_the_cheapest_member_that_meets_the_tolerance_is_published(cohort, member, tolerance):
    found = combine(Auto(tolerance=tolerance), cohort, W6)
    assert found.measurements["member"] == member
    assert found.measurements["met_tolerance"] == 1.0
    dense = relative_error(found.factors.delta_weight(), ideal(cohort, W6))
    assert found.measurements["relative_error"] == pytest.approx(dense, rel=1e-6, abs=100 * EPS)
    assert dense <= tolerance
    cheaper = [FedIT(), FLoRANA(), FLoRANA(coefficients=Coefficients.DIAGONAL)][:member]
    for method in cheaper:
        result = combine(method, cohort, W6).factors.delta_weight()
        assert relative_error(result, ideal(cohort, W6)) > tolerance


def test_a_cheaper_member_is_bit_for_bit_what_its_own_method_publishes():
    cohort = unrelated([4] * 6)
    for tolerance, method in (
        (2.0, FedIT()),
        (0.8, FLoRANA()),
        (0.7, FLoRANA(coefficients=Coefficients.DIAGONAL)),
        (0.5, FLoRANA(coefficients=Coefficients.FULL)),
    ):
        ours, theirs = (combine(m, cohort, W6).factors for m in (Auto(tolerance=tolerance), method))
        assert torch.equal(ours.a_RK, theirs.a_RK)
        assert torch.equal(ours.b_DR, theirs.b_DR)


def test_where_none_meets_the_tolerance_the_best_is_published():
    cohort = unrelated([4] * 6)
    found = combine(Auto(tolerance=0.01), cohort, W6)
    assert found.measurements["met_tolerance"] == 0.0
    assert found.measurements["member"] == 3.0
    target = ideal(cohort, W6)
    assert float((found.factors.delta_weight() - target).norm()) == pytest.approx(
        tail_norm(target, 4), rel=1e-9
    )


def test_the_tolerance_is_met_by_what_is_read_back():
    # The optimum has this rank's error exactly; bfloat16 keeps 8 bits, an error of about 2e-3.
    cohort = rotated_copies(6, start())
    exact, coarse = (
        combine(Auto(tolerance=1e-4), cohort, W6, publication=Publication(dtype=dtype))
        for dtype in (torch.float64, torch.bfloat16)
    )
    assert exact.measurements["met_tolerance"] == 1.0
    assert coarse.measurements["met_tolerance"] == 0.0
    read = Publication(dtype=torch.bfloat16).read_back(coarse.factors).delta_weight()
    dense = relative_error(read, ideal(cohort, W6))
    assert coarse.measurements["relative_error"] == pytest.approx(dense, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tolerance", [0.0, 0.02, 0.5])
def test_it_is_never_worse_than_fedit_once_both_are_rounded(dtype, tolerance):
    for cohort in (drifted(6), unrelated([4] * 6), rotated_copies(6, start(), noise=0.02)):
        publication, target = Publication(dtype=dtype, scaling=2.0), ideal(cohort, W6)
        ours, theirs = (
            publication.read_back(combine(m, cohort, W6, publication=publication).factors)
            for m in (Auto(tolerance=tolerance), FedIT())
        )
        assert relative_error(ours.delta_weight(), target) <= relative_error(
            theirs.delta_weight(), target
        ) * (1 + 1e-9)


def test_mixed_ranks_and_deficient_ranks_are_taken():
    cohort = unrelated([2, 4, 3, 1, 4, 4])
    found = combine(Auto(tolerance=0.0), cohort, W6)
    best = combine(Optimal(), cohort, W6)
    torch.testing.assert_close(found.factors.delta_weight(), best.factors.delta_weight())
    deficient = [f.padded(6) for f in unrelated([1, 1])]
    found = combine(Auto(tolerance=1e-10), deficient, weights(1, 1))
    assert found.factors.rank == 6
    assert found.measurements["met_tolerance"] == 1.0
    # Spare components of the optimum can learn: B is 0 there, A is not.
    spare = (found.factors.b_DR == 0).all(dim=0)
    assert int(spare.sum()) == 4
    assert bool((found.factors.a_RK[spare].norm(dim=1) > 0.1).all())


def test_nothing_learnt_is_met_by_the_factor_mean():
    cohort = [LoraFactors(f.a_RK, torch.zeros_like(f.b_DR)) for f in unrelated([4] * 3)]
    found = combine(Auto(), cohort, weights(1, 2, 3))
    assert found.measurements == {"member": 0.0, "met_tolerance": 1.0}


def test_a_result_of_lower_rank_than_the_updates_is_refused():
    with pytest.raises(FedLoraError, match=r"auto .* cannot publish rank 2 from updates of rank 4"):
        combine(Auto(), unrelated([4, 4]), weights(1, 1), rank=2)


@pytest.mark.parametrize("tolerance", [-0.1, math.inf, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(FedLoraError, match="auto: expected a tolerance of at least 0, got"):
        Auto(tolerance=tolerance)
