"""Laws that every weighting rule of the registry keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.builders import drifted, normal, start

from aggregator_service.aggregation.geometry import cohort_geometry
from aggregator_service.aggregation.registry import WEIGHTINGS
from aggregator_service.aggregation.weighting.base import UpdateFacts, WeightingView
from fedlora.errors import FedLoraError, Reason

every_rule = pytest.mark.parametrize("name", sorted(WEIGHTINGS))
METRICS = ("loss_reduction", "score_mean", "score_variance", "loss_at_start")


def view(count=5, *, seed=0, examples=None, state=None, names=None):
    """A cohort whose updates, examples and metrics all differ."""
    members, origin = drifted(count, seed=seed), start()
    values = normal(seed + 9, count, len(METRICS)).abs().clamp(max=0.9)
    updates = tuple(
        UpdateFacts(
            worker=(names or "abcdefgh")[u],
            num_examples=10.0 * (u + 1) if examples is None else examples[u],
            rank=4,
            metrics={
                m: float(values[u, i]) * (0.1 if m == "score_variance" else 1.0)
                for i, m in enumerate(METRICS)
            },
        )
        for u in range(count)
    )
    return WeightingView(
        updates=updates,
        geometry=lambda: cohort_geometry([(members, [origin] * count)]),
        state=state or {},
    )


def turned(cohort, order):
    whole = cohort.geometry()
    return replace(
        cohort,
        updates=tuple(cohort.updates[u] for u in order),
        geometry=lambda: replace(
            whole,
            products_UU=whole.products_UU[order][:, order],
            increments_UU=whole.increments_UU[order][:, order],
            start_U=whole.start_U[order],
            start_norms_U=whole.start_norms_U[order],
        ),
    )


@every_rule
def test_weights_are_shares(name):
    for seed in range(4):
        found = WEIGHTINGS[name].weigh(view(seed=seed)).values_U
        assert found.dtype == torch.float64
        assert bool((found >= 0).all())
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-14)


@every_rule
def test_one_update_gets_everything(name):
    assert WEIGHTINGS[name].weigh(view(1)).values_U.tolist() == [1.0]


@every_rule
def test_weights_follow_their_updates_in_any_order(name):
    order = [3, 0, 4, 2, 1]
    straight, shuffled = (
        WEIGHTINGS[name].weigh(v).values_U for v in (view(), turned(view(), order))
    )
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-12, atol=1e-14)


@every_rule
def test_equal_updates_get_equal_weights(name):
    same = view(4)
    whole = same.geometry()
    first = same.updates[0]
    flat = replace(
        same,
        updates=tuple(replace(first, worker=u.worker) for u in same.updates),
        geometry=lambda: replace(
            whole,
            products_UU=torch.full_like(whole.products_UU, 2.0),
            increments_UU=torch.full_like(whole.increments_UU, 0.5),
            start_U=torch.full_like(whole.start_U, 1.0),
            start_norms_U=torch.full_like(whole.start_norms_U, 1.0),
        ),
    )
    rule = WEIGHTINGS[name]
    weighed = rule.weigh(flat)
    torch.testing.assert_close(weighed.values_U, torch.full((4,), 0.25).double())
    again = rule.weigh(replace(flat, state=weighed.state))
    torch.testing.assert_close(again.values_U, torch.full((4,), 0.25).double())


@every_rule
def test_the_number_of_examples_counts_by_its_ratios(name):
    counts = [3.0, 1.0, 5.0, 2.0, 2.0]
    small, large = (
        WEIGHTINGS[name].weigh(view(examples=[c * k for c in counts])).values_U for k in (1, 1024)
    )
    assert torch.equal(small, large)


@every_rule
def test_who_comes_and_goes_is_weighed_with_the_others(name):
    rule, state = WEIGHTINGS[name], {}
    for round, names in enumerate(("abcde", "bcd", "acegh", "h")):
        weighed = rule.weigh(view(len(names), seed=round, names=names, state=state))
        assert float(weighed.values_U.sum()) == pytest.approx(1.0, abs=1e-14)
        assert all(torch.isfinite(tensor).all() for tensor in weighed.state.values())
        state = weighed.state


@every_rule
def test_a_metric_that_did_not_come_is_named_with_the_worker(name):
    rule = WEIGHTINGS[name]
    cohort = view()
    poor = replace(cohort.updates[1], metrics={})
    lacking = replace(cohort, updates=(cohort.updates[0], poor, *cohort.updates[2:]))
    if not rule.required_metrics:
        assert torch.equal(rule.weigh(lacking).values_U, rule.weigh(cohort).values_U)
        return
    with pytest.raises(FedLoraError, match=f"{name} needs the metric") as caught:
        rule.weigh(lacking)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert rule.required_metrics[0] in caught.value.message
    assert "b came without" in caught.value.message
