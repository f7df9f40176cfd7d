"""Weights by truncation error: each form minimises what it says, over the whole simplex."""

from __future__ import annotations

import pytest
import torch
from support.builders import normal, weights
from support.reference import EPS

from aggregator_service.aggregation.weighting.base import CohortGeometry, UpdateFacts, WeightingView
from aggregator_service.aggregation.weighting.truncation_error import Form, TruncationError
from fedlora.errors import FedLoraError, Reason

SPECTRA = {
    "encoder.0.query": torch.tensor([9.0, 5.0, 3.0, 2.0, 1.0, 0.5]).double(),
    "encoder.0.value": torch.tensor([4.0, 2.0, 0.25]).double(),
}


def unused() -> CohortGeometry:
    raise AssertionError("the rule looks at no tensor")


def view(ranks, examples, spectra=SPECTRA):
    facts = (
        UpdateFacts(worker=f"w{u}", num_examples=n, rank=r)
        for u, (r, n) in enumerate(zip(ranks, examples, strict=True))
    )
    return WeightingView(
        updates=tuple(facts),
        geometry=unused,
        module_states={"values": spectra}.__getitem__,
    )


def truncation_errors(ranks, spectra=SPECTRA):
    return torch.tensor(
        [sum(float((v[r:] ** 2).sum()) for v in spectra.values()) for r in ranks]
    ).double()


def simplex_minimiser(curvature_U, linear_U):
    """min sum c_u p_u^2 - 2 l_u p_u over the simplex: projected gradient descent."""
    p = torch.full_like(curvature_U, 1 / len(curvature_U))
    step = 0.5 / float(curvature_U.max())
    for _ in range(20000):
        moved = p - step * 2 * (curvature_U * p - linear_U)
        # Projection onto the simplex, by its sorted form.
        ordered = moved.sort(descending=True).values
        shift = (ordered.cumsum(0) - 1) / torch.arange(1, len(p) + 1)
        p = (moved - shift[(ordered > shift).nonzero().max()]).clamp(min=0)
    return p


RANKS, EXAMPLES = [1, 2, 4, 5], [40, 30, 20, 10]
DATA = weights(0.4, 0.3, 0.2, 0.1)


@pytest.mark.parametrize("pull", [0.1, 1.0, 10.0])
def test_the_data_aware_weights_minimise_their_objective(pull):
    e = truncation_errors(RANKS)
    mu = pull * float(e.mean())
    expected = simplex_minimiser(e + mu, mu * DATA)
    found = TruncationError(data_pull=pull).weigh(view(RANKS, EXAMPLES)).values_U
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("power", [1, 2])
def test_the_power_weights_minimise_their_objective(power):
    e = truncation_errors(RANKS)
    curvature = e**power + (0.1 * e.mean()) ** power
    expected = simplex_minimiser(curvature / curvature.max(), torch.zeros(4).double())
    rule = TruncationError(form=Form.POWER, power=power, eps_rel=0.1)
    found = rule.weigh(view(RANKS, EXAMPLES)).values_U
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_numbers_worked_by_hand():
    # One module, values 2, 1: rank 1 leaves e = 1, rank 2 leaves 0, so mu = 1/2. With w = 1/2 each
    # nu = (1 - (1/4)/(3/2) - (1/4)/(1/2)) / (2/3 + 2) = (1/3) / (8/3) = 1/8 and
    # p = ((1/4 + 1/8) / (3/2), (1/4 + 1/8) / (1/2)) = (1/4, 3/4).
    seen = view([1, 2], [7, 7], {"only": torch.tensor([2.0, 1.0]).double()})
    found = TruncationError().weigh(seen)
    torch.testing.assert_close(found.values_U, weights(0.25, 0.75), rtol=4 * EPS, atol=0)
    # |D|^2 = 5. The second component is missing for a quarter: 1/4 of 1; its bound is
    # sqrt(2 (1/4)^2), and sqrt(2 (1/2)^2) for the data weights.
    assert found.measurements == pytest.approx(
        {
            "truncation_error_rank_1": 0.2**0.5,
            "truncation_error_rank_2": 0.0,
            "largest_truncation_error": 0.2**0.5,
            "start_bias": 0.25 / 5**0.5,
            "drift_bound": 2**0.5 / 4 / 5**0.5,
            "drift_bound_at_data_weights": 2**0.5 / 2 / 5**0.5,
            "moved_from_data_weights": 0.25,
        },
        rel=1e-14,
    )
    # power: eps = 1/2, p ~ (1 / (3/2), 1 / (1/2)) = (1/4, 3/4).
    rule = TruncationError(form=Form.POWER, eps_rel=1.0)
    torch.testing.assert_close(rule.weigh(seen).values_U, weights(0.25, 0.75), rtol=4 * EPS, atol=0)


@pytest.mark.parametrize(
    "rule",
    [
        TruncationError(),
        TruncationError(data_pull=1e-6),
        TruncationError(form=Form.POWER),
        TruncationError(form=Form.POWER, power=2, eps_rel=1e-3),
        TruncationError(form=Form.DATA),
    ],
)
def test_weights_lie_in_the_simplex(rule):
    for seed in range(20):
        spectrum = normal(seed, 16).abs().sort(descending=True).values * 10.0 ** (seed - 10)
        ranks = [1 + (7 * u + seed) % 16 for u in range(5)]
        found = rule.weigh(view(ranks, [1, 2, 3, 4, 5], {"only": spectrum})).values_U
        assert found.dtype == torch.float64
        assert bool((found >= 0).all())
        assert float(found.sum()) == pytest.approx(1, abs=10 * EPS)


def test_with_equal_errors_the_default_goes_half_way_to_equal_weights():
    found = TruncationError().weigh(view([2, 2, 2, 2], EXAMPLES)).values_U
    torch.testing.assert_close(found, (DATA + 0.25) / 2, rtol=10 * EPS, atol=0)


@pytest.mark.parametrize("power", [1, 2])
def test_with_equal_errors_power_gives_equal_weights(power):
    rule = TruncationError(form=Form.POWER, power=power)
    found = rule.weigh(view([2, 2, 2, 2], EXAMPLES)).values_U
    torch.testing.assert_close(found, torch.full((4,), 0.25).double(), rtol=10 * EPS, atol=0)


@pytest.mark.parametrize("form", list(Form))
def test_without_any_error_the_weights_are_the_data_weights(form):
    rule = TruncationError(form=form)
    for seen in (view([6, 7, 8, 9], EXAMPLES), view(RANKS, EXAMPLES, {})):
        torch.testing.assert_close(rule.weigh(seen).values_U, DATA, rtol=4 * EPS, atol=0)


def test_the_form_data_ignores_truncation():
    found = TruncationError(form=Form.DATA).weigh(view(RANKS, EXAMPLES)).values_U
    torch.testing.assert_close(found, DATA, rtol=4 * EPS, atol=0)


def test_a_strong_pull_gives_the_data_weights_and_a_weak_one_the_power_weights():
    seen = view(RANKS, EXAMPLES)
    strong = TruncationError(data_pull=1e9).weigh(seen).values_U
    torch.testing.assert_close(strong, DATA, rtol=0, atol=1e-8)
    weak = TruncationError(data_pull=1e-9).weigh(seen).values_U
    inverse = TruncationError(form=Form.POWER, eps_rel=1e-9).weigh(seen).values_U
    torch.testing.assert_close(weak, inverse, rtol=0, atol=1e-7)


def test_higher_powers_favour_the_largest_rank_more():
    seen = view(RANKS, EXAMPLES)
    shares = [
        float(rule.weigh(seen).values_U[-1])
        for rule in (
            TruncationError(form=Form.DATA),
            TruncationError(),
            TruncationError(form=Form.POWER),
            TruncationError(form=Form.POWER, power=2),
        )
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9


def test_the_size_of_the_adapter_does_not_matter():
    for rule in (TruncationError(), TruncationError(form=Form.POWER, power=2)):
        found = rule.weigh(view(RANKS, EXAMPLES)).values_U
        for size in (1e-90, 1e90):
            scaled = {m: size * v for m, v in SPECTRA.items()}
            other = rule.weigh(view(RANKS, EXAMPLES, scaled)).values_U
            torch.testing.assert_close(other, found, rtol=100 * EPS, atol=0)


def test_the_bias_of_the_starts_is_the_mean_of_what_they_lack():
    found = TruncationError().weigh(view(RANKS, EXAMPLES))
    squares = whole = 0.0
    for values in SPECTRA.values():
        lacking = sum(
            p * torch.cat([torch.zeros(r).double(), values[r:]])[: len(values)]
            for r, p in zip(RANKS, found.values_U, strict=True)
        )
        squares += float(lacking.square().sum())
        whole += float(values.square().sum())
    assert found.measurements["start_bias"] == pytest.approx((squares / whole) ** 0.5, rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_the_bias_of_the_starts_stays_below_its_bound_and_the_weights_lower_the_bound(seed):
    spectrum = normal(seed, 16).abs().sort(descending=True).values
    seen = view([1 + (7 * u + seed) % 16 for u in range(5)], [1, 2, 3, 4, 5], {"only": spectrum})
    found = TruncationError(data_pull=1e-6).weigh(seen).measurements
    assert found["start_bias"] <= found["drift_bound"] * (1 + 1e-12)
    assert found["drift_bound"] <= found["drift_bound_at_data_weights"] * (1 + 1e-12)


def test_a_delta_of_zero_or_none_is_measured_as_nothing_lost():
    for spectra in ({}, {"only": torch.zeros(3).double()}, {"only": torch.zeros(0).double()}):
        found = TruncationError().weigh(view(RANKS, EXAMPLES, spectra)).measurements
        assert set(found.values()) == {0.0}
        assert "truncation_error_rank_5" in found


def test_a_rank_that_holds_the_whole_delta_has_no_error():
    # Without an error power's weight is all but 1, whatever the data weight.
    rule = TruncationError(form=Form.POWER, eps_rel=1e-9)
    found = rule.weigh(view([1, 6], [99, 1])).values_U
    assert float(found[1]) == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize(
    ("options", "got"),
    [
        ({"power": 3}, "got 3, 0.01 and 1.0"),
        ({"eps_rel": 0.0}, "got 1, 0.0 and 1.0"),
        ({"data_pull": float("nan")}, "got 1, 0.01 and nan"),
    ],
)
def test_bad_options_are_refused(options, got):
    with pytest.raises(FedLoraError, match=got) as caught:
        TruncationError(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
