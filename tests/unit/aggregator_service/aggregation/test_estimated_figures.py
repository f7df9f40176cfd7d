"""Estimated certificates against exact ones of the same cohorts."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.recipes import combine

from aggregator_service.aggregation import certificate
from aggregator_service.aggregation.certificate import measure
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule, ModuleCohort
from fedlora.adapters.factors import LoraFactors

METHODS = {"fedit": FedIT(), "optimal": Optimal()}
SHARES = ("relative_error", "factor_mean_error", "lower_bound")


def cohort_of(members, dtype=torch.float32):
    w = weights(*[1.0 + u % 3 for u in range(len(members))])
    origin = start(d=members[0].out_features, k=members[0].in_features, r=8)
    return ModuleCohort.of(
        [f.to(dtype) for f in members],
        w,
        start=GlobalModule(factors=origin.to(dtype).to(torch.float64)),
    )


def published(cohort, method, base=None):
    result = combine(METHODS[method], cohort.members, cohort.weights_U, start=cohort.start, rank=8)
    narrow = result.factors.to(torch.float32).to(torch.float64)
    return GlobalModule(factors=narrow, base=base)


def both(monkeypatch, cohort, file):
    """The estimate, and the exact figures."""
    estimate = measure(cohort, published=file)
    monkeypatch.setattr(certificate, "is_estimated", lambda *_, **__: False)
    exact = measure(cohort, published=file)
    assert estimate.is_estimate
    assert not exact.is_estimate
    return tuple(n.entry("", roundoff=2**-24, measurements={}) for n in (estimate, exact))


COHORTS = {
    "near a start": lambda: drifted(40, d=300, k=260, r=8),
    "nothing in common": lambda: unrelated([8] * 40, d=300, k=260),
    "of mixed ranks": lambda: [
        LoraFactors(f.a_RK[:rank], f.b_DR[:, :rank])
        for f, rank in zip(drifted(80, d=300, k=260, r=8), [2, 8, 5, 3] * 20, strict=True)
    ],
}


PAIRS = [(name, method) for name in COHORTS for method in METHODS]
PAIRS.remove(("of mixed ranks", "fedit"))


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_estimates_are_within_a_few_hundredths(name, method, monkeypatch):
    cohort = cohort_of(COHORTS[name]())
    estimate, exact = both(monkeypatch, cohort, published(cohort, method))
    # 16 probes of a tail of about 100 values: sqrt(1 / (32 * 100)) = 1.8 %, and four of them.
    for field in ("ideal_norm", "change_norm", *SHARES):
        assert getattr(estimate, field) == pytest.approx(getattr(exact, field), rel=0.08)
    assert estimate.gap_closed == pytest.approx(exact.gap_closed, abs=0.02)
    assert estimate.effective_rank == pytest.approx(exact.effective_rank, rel=0.35)
    assert len(estimate.spectrum) >= 8
    lead = zip(estimate.spectrum[:4], exact.spectrum[:4], strict=True)
    assert all(mine == pytest.approx(theirs, rel=1e-3) for mine, theirs in lead)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_bound_lies_below_every_error(method):
    for seed in range(6):
        cohort = cohort_of(unrelated([8] * 40, d=300, k=260, seed=seed))
        entry = measure(cohort, published=published(cohort, method)).entry(
            "", roundoff=2**-24, measurements={}
        )
        assert entry.lower_bound <= entry.relative_error * (1 + 1e-9)
        assert entry.lower_bound <= entry.factor_mean_error * (1 + 1e-9)


def test_an_exact_result_has_an_error_of_rounding_alone(monkeypatch):
    # What float32 products cannot tell is asked for again in float64.
    common = normal(5, 8, 260)
    members = [LoraFactors(common, normal(60 + u, 300, 8)) for u in range(40)]
    cohort = cohort_of(members)
    estimate, exact = both(monkeypatch, cohort, published(cohort, "fedit"))
    assert estimate.relative_error == pytest.approx(exact.relative_error, rel=0.2)
    assert estimate.relative_error < 1e-7


def test_what_was_added_to_the_base_model_counts(monkeypatch):
    cohort = cohort_of(unrelated([8] * 40, d=300, k=260))
    stack = cohort.stack()
    file = published(cohort, "optimal")
    rest = LoraFactors(
        torch.cat([stack.a_RK, file.factors.a_RK]),
        torch.cat([stack.b_DR, -file.factors.b_DR], dim=1),
    )
    entry = measure(cohort, published=GlobalModule(factors=file.factors, base=rest)).entry(
        "", roundoff=2**-24, measurements={}
    )
    assert entry.relative_error < 1e-9
    assert entry.lower_bound > 0.1


def test_without_a_start_there_is_no_change():
    members = unrelated([8] * 40, d=300, k=260)
    cohort = ModuleCohort.of(members, weights(*[1.0] * 40))
    assert math.isnan(measure(cohort, published=published(cohort, "optimal")).change)


@pytest.mark.parametrize("d", [2, 24])
def test_the_bound_of_a_layer_with_a_short_side_is_that_of_all_its_rows(d, monkeypatch):
    """The rows of the adapters that are compared are more than the layer has components."""
    cohort = cohort_of(drifted(40, d=d, k=260, r=8))
    estimate, exact = both(monkeypatch, cohort, published(cohort, "fedit"))
    assert estimate.lower_bound == pytest.approx(exact.lower_bound, rel=0.1, abs=1e-6)


def test_a_bound_below_float32_lies_below_the_error(monkeypatch):
    cohort = cohort_of(drifted(40, d=300, k=260, r=8, drift=1e-3))
    estimate, exact = both(monkeypatch, cohort, published(cohort, "optimal"))
    assert exact.lower_bound < 1e-6
    assert estimate.lower_bound == pytest.approx(exact.lower_bound, rel=0.1)
    assert estimate.lower_bound <= estimate.relative_error


def test_a_bound_of_updates_that_hardly_moved_lies_below_the_factor_means_error(monkeypatch):
    cohort = cohort_of(drifted(40, d=300, k=260, r=8, drift=1e-6))
    estimate, exact = both(monkeypatch, cohort, published(cohort, "optimal"))
    assert exact.lower_bound < 1e-11
    assert estimate.lower_bound == pytest.approx(exact.lower_bound, rel=0.1)
    assert estimate.lower_bound <= estimate.factor_mean_error
