"""Replication padding: every component over its owners."""

from __future__ import annotations

import pytest
import torch
from support.builders import start, unrelated, weights
from support.recipes import combine

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.factor_means import owners_weight
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.replication import Replication
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.errors import FedLoraError

RANKS = [2, 5, 3]
W3 = weights(1, 2, 3)


def test_one_number_worked_by_hand():
    # Rank 1 and rank 2, equal weights: the second component is the large worker's own, undiluted.
    small = LoraFactors(torch.tensor([[3.0]]).double(), torch.tensor([[2.0]]).double())
    large = LoraFactors(torch.tensor([[5.0], [8.0]]).double(), torch.tensor([[4.0, 6.0]]).double())
    found = combine(Replication(), [small, large], weights(1, 1)).factors
    assert found.a_RK.tolist() == [[4.0], [8.0]]
    assert found.b_DR.tolist() == [[3.0, 6.0]]


def test_each_component_is_the_mean_over_those_whose_rank_reaches_it():
    members, share = unrelated(RANKS), W3 / 6
    found = combine(Replication(), members, W3).factors
    for j in range(5):
        owners = [u for u, r in enumerate(RANKS) if r > j]
        total = sum(share[u] for u in owners)
        a = sum(share[u] * members[u].a_RK[j] for u in owners) / total
        b = sum(share[u] * members[u].b_DR[:, j] for u in owners) / total
        torch.testing.assert_close(found.a_RK[j], a)
        torch.testing.assert_close(found.b_DR[:, j], b)


def test_filling_missing_rows_with_the_mean_of_the_owners_is_the_same_rule():
    # The paper's own words: a small worker's missing rows are copies of what the large ones have.
    members, share = unrelated(RANKS), W3 / 6
    owned = combine(Replication(), members, W3).factors
    filled = [
        LoraFactors(
            torch.cat([f.a_RK, owned.a_RK[f.rank :]]),
            torch.cat([f.b_DR, owned.b_DR[:, f.rank :]], dim=1),
        )
        for f in members
    ]
    a = sum(x * f.a_RK for x, f in zip(share, filled, strict=True))
    b = sum(x * f.b_DR for x, f in zip(share, filled, strict=True))
    torch.testing.assert_close(a, owned.a_RK)
    torch.testing.assert_close(b, owned.b_DR)


def test_equal_ranks_are_fedit_to_the_bit():
    members = unrelated([4, 4, 4])
    ours, theirs = (combine(m, members, W3).factors for m in (Replication(), FedIT()))
    assert torch.equal(ours.a_RK, theirs.a_RK)
    assert torch.equal(ours.b_DR, theirs.b_DR)


def test_a_row_of_a_single_owner_is_unchanged():
    members = unrelated([2, 5])
    found = combine(Replication(), members, weights(3, 1)).factors
    torch.testing.assert_close(found.a_RK[2:], members[1].a_RK[2:], rtol=1e-15, atol=0)
    torch.testing.assert_close(found.b_DR[:, 2:], members[1].b_DR[:, 2:], rtol=1e-15, atol=0)


def test_no_component_up_to_the_largest_rank_is_without_owners():
    owned = owners_weight(unrelated([1, 20, 3]), weights(0.25, 0.25, 0.5))
    assert owned.tolist() == [1.0] + [0.75] * 2 + [0.25] * 17


def test_components_that_no_update_reaches_stay_as_they_were():
    first = GlobalModule(factors=start(r=8, seed=3))
    found = combine(Replication(), unrelated(RANKS), W3, rank=8, start=first).factors
    assert torch.equal(found.a_RK[5:], first.factors.a_RK[5:])
    assert torch.equal(found.b_DR[:, 5:], first.factors.b_DR[:, 5:])


def test_what_a_run_is_told():
    recipe = compose(Replication())
    assert recipe.plans()[0].features == frozenset()
    assert recipe.properties.mixed_ranks
    assert recipe.properties.keeps_basis


def test_a_result_of_lower_rank_than_the_updates_is_refused():
    with pytest.raises(FedLoraError, match=r"replication .* cannot publish rank 2"):
        combine(Replication(), unrelated([4, 4]), weights(1, 1), rank=2)
