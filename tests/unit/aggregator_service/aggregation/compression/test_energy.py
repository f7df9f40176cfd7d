"""energy: the fewest components that hold a share of the energy, layer by layer."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.dense_rounds import product
from support.recipes import combine
from support.reference import EPS, best_of_rank, ideal, tail_norm

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.compression.energy import Energy, energy_rank
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason


def compress(members, w, *, rank=4, **options):
    context = {name: options.pop(name) for name in ("start",) if name in options}
    return combine(
        compose(Optimal(), compression=Energy(**options)), members, w, rank=rank, **context
    )


def test_ranks_worked_by_hand():
    # squares 16, 4, 1: 16 / 21 = 0.76 and 20 / 21 = 0.95
    values = torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64)
    for threshold, rank in ((0.5, 1), (0.76, 1), (0.77, 2), (0.95, 2), (0.96, 3), (1.0, 3)):
        assert energy_rank(values, threshold) == rank
    assert energy_rank(torch.zeros(3).double(), 0.9) == 0
    assert energy_rank(torch.zeros(0).double(), 0.9) == 0


def test_a_tail_far_below_the_rest_still_counts_at_threshold_one():
    values = torch.tensor([1.0, 1e-12], dtype=torch.float64)
    assert energy_rank(values, 1.0) == 2
    assert energy_rank(values, 1 - 1e-15) == 1


@pytest.mark.parametrize("threshold", [0.3, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 6, 3, 9]])
def test_the_rank_is_minimal_and_the_error_within_the_threshold(threshold, ranks):
    members, w = unrelated(ranks), weights(*range(1, len(ranks) + 1))
    dense = ideal(members, w)
    result = compress(members, w, threshold=threshold)
    q, allowed = result.factors.rank, (1 - threshold) * float(dense.square().sum())
    error = float((result.factors.delta_weight() - dense).square().sum())
    assert error <= allowed
    assert tail_norm(dense, q - 1) ** 2 > allowed
    # ... and it is the best of its rank.
    assert error == pytest.approx(tail_norm(dense, q) ** 2, rel=1e-9)
    assert result.measurements["kept_rank"] == q
    share = tail_norm(dense, q) / float(dense.norm())
    assert result.measurements["truncation_error"] == pytest.approx(share, rel=1e-9)


def test_threshold_one_is_exact_at_the_products_own_rank():
    members, w = unrelated([3, 5, 2]), weights(1, 2, 3)
    result = compress(members, w, threshold=1.0)
    assert result.factors.rank == 10
    gap = float((result.factors.delta_weight() - ideal(members, w)).norm())
    assert gap < 1000 * EPS * float(ideal(members, w).norm())
    copies = [members[0]] * 3
    assert compress(copies, w, threshold=1.0).factors.rank == 3


def test_the_rank_may_exceed_the_runs():
    members = unrelated([4] * 4)
    assert compress(members, weights(1, 1, 1, 1), threshold=0.999, rank=2).factors.rank > 4


def test_caps_on_the_rank():
    members, w = unrelated([4] * 4), weights(1, 1, 1, 1)
    capped = compress(members, w, threshold=1.0, max_rank=5)
    torch.testing.assert_close(
        capped.factors.delta_weight(), best_of_rank(ideal(members, w), 5), rtol=0, atol=1e-12
    )
    wide = compress(members, w, threshold=0.1, min_rank=3)
    assert wide.factors.rank == 3
    torch.testing.assert_close(
        wide.factors.delta_weight(), best_of_rank(ideal(members, w), 3), rtol=0, atol=1e-12
    )


def test_spare_components_of_a_least_rank_can_learn():
    one = LoraFactors(normal(1, 1, 17), normal(2, 24, 1))
    result = compress([one, one], weights(1, 1), threshold=0.9, min_rank=4).factors
    assert result.rank == 4
    assert not result.b_DR[:, 1:].any()
    assert bool((result.a_RK[1:].norm(dim=1) > 0.5).all())


def test_nothing_learnt_is_published_as_a_fresh_adapter():
    idle = [LoraFactors(normal(u, 4, 17), torch.zeros(24, 4).double()) for u in range(2)]
    result = compress(idle, weights(1, 1), min_rank=2)
    assert result.factors.rank == 2
    assert not result.factors.b_DR.any()
    assert result.factors.a_RK.any()
    assert result.measurements["truncation_error"] == 0.0


def test_a_is_orthonormal():
    a = compress(drifted(3), weights(1, 2, 3)).factors.a_RK
    torch.testing.assert_close(a @ a.T, torch.eye(len(a)).double(), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("with_start", [False, True])
def test_restart_moves_the_kept_components_into_the_base_model(with_start):
    members, w = unrelated([2, 6, 3]), weights(3, 2, 1)
    pair = compress(members, w, threshold=0.9)
    context = {"start": GlobalModule(factors=start(), base=start(r=3, seed=9))}
    before = context["start"].base if with_start else None
    result = compress(members, w, threshold=0.9, restart=True, **(context if with_start else {}))
    dense = pair.factors.delta_weight()
    torch.testing.assert_close(
        product(result.base, dense), product(before, dense) + dense, rtol=0, atol=1e-12
    )
    assert result.factors.rank == 4
    assert not result.factors.b_DR.any()
    assert result.measurements["kept_rank"] == pair.factors.rank
    assert result.measurements["base_rank"] == result.base.rank


def test_restart_with_nothing_learnt_adds_nothing():
    idle = [LoraFactors(normal(u, 4, 17), torch.zeros(24, 4).double()) for u in range(2)]
    assert compress(idle, weights(1, 1), restart=True).base is None


def test_it_is_exact_only_if_nothing_is_cut_off():
    def promised(**options):
        return compose(Optimal(), compression=Energy(**options)).properties

    assert promised(threshold=1.0).exact
    assert not promised(threshold=0.999).exact
    assert not promised(threshold=1.0, max_rank=8).exact
    assert not promised().keeps_basis
    assert promised().kinds == frozenset(AdapterKind)
    assert promised(restart=True).changes_base
    assert promised(restart=True).kinds == {AdapterKind.LORA}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "threshold above 0 and at most 1, got 0.0"),
        ({"threshold": math.nan}, "threshold above 0"),
        ({"threshold": 1.1}, "threshold above 0"),
        ({"min_rank": 0}, "min_rank >= 1"),
        ({"min_rank": 5, "max_rank": 4}, "at least min_rank, got 5 and 4"),
        ({"max_rank": -1}, "max_rank 0"),
        ({"max_base_rank": -1}, "max_base_rank >= 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(FedLoraError, match=message) as caught:
        Energy(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
