"""FlexLoRA: the mean product, sliced per client; and the collapse of high components."""

from __future__ import annotations

import pytest
import torch
from support.builders import start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, best_of_rank, ideal, relative_error, tail_norm

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.compression.truncate import Core
from aggregator_service.aggregation.methods.flexlora import FlexLoRA, Partition
from aggregator_service.aggregation.methods.optimal import Optimal
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.spec import AdapterKind

OWNERS = FlexLoRA(partition=Partition.OWNERS)


def test_one_number_worked_by_hand():
    # T = (3 * 2 * 1 + 1 * 6 * 5) / 4 = 9 = U S V^T with A = V^T = 1: B = 9.
    one = torch.ones(1, 1, dtype=torch.float64)
    members = [LoraFactors(one, 2 * one), LoraFactors(5 * one, 6 * one)]
    found = combine(FlexLoRA(), members, weights(3, 1)).factors
    assert float(found.b_DR) == pytest.approx(9, rel=1e-14)
    assert float(found.a_RK) == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("core", [Core.AUTO, Core.QR, Core.GRAM])
@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 8, 3], [2, 20]])
def test_it_is_the_best_of_its_rank(core, ranks):
    members, w = unrelated(ranks), weights(*range(1, len(ranks) + 1))
    target = ideal(members, w)
    for rank in (1, 4, 8):
        found = combine(FlexLoRA(core=core), members, w, rank=rank).factors.delta_weight()
        assert relative_error(found, best_of_rank(target, rank)) < 1e-8
        assert float((found - target).norm()) == pytest.approx(tail_norm(target, rank), rel=1e-8)


def test_it_is_exact_from_the_rank_of_the_mean_on():
    members, w = unrelated([3, 2, 4]), weights(1, 2, 3)
    found = combine(FlexLoRA(), members, w, rank=9).factors.delta_weight()
    assert relative_error(found, ideal(members, w)) < 1000 * EPS


def test_a_rank_4_download_is_the_first_4_components_of_a_rank_8_download():
    members, w = unrelated([4, 8, 6]), weights(1, 2, 3)
    four, eight = (combine(FlexLoRA(), members, w, rank=r).factors for r in (4, 8))
    # Products of another width round otherwise on some processors.
    torch.testing.assert_close(four.a_RK, eight.a_RK[:4], rtol=0, atol=100 * EPS)
    torch.testing.assert_close(four.b_DR, eight.b_DR[:, :4], rtol=100 * EPS, atol=100 * EPS)


def test_it_is_optimal_in_the_gauge_with_orthonormal_rows():
    members, w = unrelated([4, 8, 6]), weights(1, 2, 3)
    found = combine(FlexLoRA(), members, w, rank=5).factors
    other = combine(Optimal(), members, w, rank=5).factors
    assert relative_error(found.delta_weight(), other.delta_weight()) < 1000 * EPS
    torch.testing.assert_close(
        found.a_RK @ found.a_RK.T, torch.eye(5).double(), rtol=0, atol=100 * EPS
    )
    norms = found.b_DR.norm(dim=0)
    torch.testing.assert_close(norms, torch.linalg.svdvals(ideal(members, w))[:5])


def owners_mean(members, w):
    """Component by component over the clients that have it, dense."""
    total = torch.zeros(24, 17, dtype=torch.float64)
    for j in range(max(f.rank for f in members)):
        owners = [u for u, f in enumerate(members) if f.rank > j]
        whole = sum(float(w[u]) for u in owners)
        for u in owners:
            b, a = members[u].b_DR[:, j], members[u].a_RK[j]
            total += float(w[u]) / whole * torch.outer(b, a)
    return total


@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 8, 3], [2, 2, 6]])
def test_with_owners_each_component_is_averaged_over_those_that_have_it(ranks):
    members, w = unrelated(ranks), weights(5, 2, 3)
    found = combine(OWNERS, members, w, rank=17).factors.delta_weight()
    assert relative_error(found, owners_mean(members, w)) < 1000 * EPS


def test_with_equal_ranks_owners_are_everybody():
    members, w = unrelated([4, 4, 4]), weights(5, 2, 3)
    one, other = (combine(m, members, w).factors for m in (FlexLoRA(), OWNERS))
    assert relative_error(other.delta_weight(), one.delta_weight()) < 1000 * EPS


def test_a_component_of_one_owner_is_that_owners():
    # By hand: the second component belongs to the second client alone, weight 1 instead of 1/4.
    eye = torch.eye(2, dtype=torch.float64)
    members = [LoraFactors(eye[:1], eye[:, :1]), LoraFactors(eye, 2 * eye)]
    diagonal = combine(OWNERS, members, weights(3, 1), rank=2).factors.delta_weight().diagonal()
    torch.testing.assert_close(diagonal.sort().values, torch.tensor([1.25, 2.0]).double())
    diagonal = combine(FlexLoRA(), members, weights(3, 1), rank=2).factors.delta_weight().diagonal()
    torch.testing.assert_close(diagonal.sort().values, torch.tensor([0.5, 1.25]).double())


@pytest.mark.parametrize(("method", "kept"), [(FlexLoRA(), 0.25**5), (OWNERS, 1.0)])
def test_without_owners_high_components_decay_geometrically(method, kept):
    # Clients that hand back what they were given: the fourth component is the second client's
    # alone, with a quarter of the weight.
    held = combine(FlexLoRA(), [start()], weights(1), rank=4).factors
    before = torch.linalg.svdvals(held.delta_weight())[:4]
    for _ in range(5):
        members = [LoraFactors(held.a_RK[:2], held.b_DR[:, :2]), held]
        held = combine(method, members, weights(3, 1), rank=4).factors
    after = torch.linalg.svdvals(held.delta_weight())[:4]
    torch.testing.assert_close(after[:2], before[:2])
    torch.testing.assert_close(after[2:], kept * before[2:])


def test_what_it_promises():
    assert FlexLoRA().properties.exact
    assert not OWNERS.properties.exact
    found = compose(FlexLoRA()).properties
    assert not found.exact
    assert found.mixed_ranks
    assert not found.changes_base
    assert found.kinds == frozenset(AdapterKind)
