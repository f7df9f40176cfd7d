"""How far lengths and directions of A and B moved, beside the definition."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights

from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.sensitivity import movement
from fedlora.adapters.axis import Axis
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part

BOTH = (Part.A, Part.B)
VECTORS = {Axis.RANK: ("rows", "columns"), Axis.ROW: ("rows", "rows"), Axis.DORA: ("columns",) * 2}


def cohort(members, w, sent):
    return ModuleCohort.of(members, w, sent=sent)


def vectors(factor, kind):
    return list(factor if kind == "rows" else factor.T)


def test_one_number_worked_by_hand():
    # A goes from (3, 0) to (0, 5): 2 longer, turned by 90 degrees. B goes from 2 to -2.
    def rank_one(a, b):
        return LoraFactors(torch.tensor([a]).double(), torch.tensor([[b]]).double())

    found = movement(
        cohort([rank_one([0.0, 5.0], -2.0)], weights(1), [rank_one([3.0, 0.0], 2.0)]),
        Axis.RANK,
        BOTH,
    )
    assert found == pytest.approx(
        {
            "magnitude_change_a": 2.0,
            "direction_change_a": 1.0,
            "magnitude_change_b": 0.0,
            "direction_change_b": 2.0,
        }
    )


@pytest.mark.parametrize("axis", list(Axis))
def test_it_is_the_weighted_mean_of_each_workers_own_change(axis):
    # Each worker began somewhere else: what counts is what it was given.
    sent = unrelated([4, 4, 4])
    members = [
        LoraFactors(
            g.a_RK + 0.3 * normal(90 + u, *g.a_RK.shape),
            g.b_DR + 0.3 * normal(95 + u, *g.b_DR.shape),
        )
        for u, g in enumerate(sent)
    ]
    found = movement(cohort(members, weights(1, 2, 5), sent), axis, BOTH)
    for side, kind in zip("ab", VECTORS[axis], strict=True):
        longer = turned = 0.0
        for share, new, old in zip((1 / 8, 2 / 8, 5 / 8), members, sent, strict=True):
            pair = ((f.a_RK if side == "a" else f.b_DR) for f in (new, old))
            both = list(zip(*(vectors(f, kind) for f in pair), strict=True))
            longer += share * sum(abs(float(x.norm() - y.norm())) for x, y in both) / len(both)
            cosines = [float(torch.cosine_similarity(x, y, dim=0)) for x, y in both]
            turned += share * sum(1 - c for c in cosines) / len(both)
        assert found[f"magnitude_change_{side}"] == pytest.approx(longer, rel=1e-12)
        assert found[f"direction_change_{side}"] == pytest.approx(turned, rel=1e-12)


def test_a_very_small_turn_keeps_its_digits():
    origin = start()
    orthogonal = normal(3, *origin.a_RK.shape)
    units = origin.a_RK / origin.a_RK.norm(dim=1, keepdim=True)
    orthogonal -= (orthogonal * units).sum(dim=1, keepdim=True) * units
    orthogonal *= origin.a_RK.norm(dim=1, keepdim=True) / orthogonal.norm(dim=1, keepdim=True)
    turned = LoraFactors(origin.a_RK + 1e-7 * orthogonal, origin.b_DR)
    found = movement(cohort([turned], weights(1), [origin]), Axis.RANK, BOTH)
    # 1 - cos(1e-7), of which 1 - cos as it stands has no digit.
    assert found["direction_change_a"] == pytest.approx(5e-15, rel=1e-6)


def test_a_factor_that_begins_at_zero_has_no_direction_to_compare():
    zero = LoraFactors(start().a_RK, torch.zeros(24, 4).double())
    found = movement(cohort(drifted(3), weights(1, 1, 1), [zero] * 3), Axis.RANK, BOTH)
    assert set(found) == {"magnitude_change_a", "direction_change_a"}


def test_vectors_and_workers_without_a_direction_are_left_out():
    origin = start()
    hollow = LoraFactors(origin.a_RK.clone(), origin.b_DR)
    hollow.a_RK[:3] = 0
    empty = LoraFactors(torch.zeros_like(origin.a_RK), origin.b_DR)
    double = LoraFactors(2 * origin.a_RK, origin.b_DR)
    found = movement(
        cohort([double] * 3, weights(1, 1, 1), [origin, hollow, empty]), Axis.RANK, BOTH
    )
    lengths = origin.a_RK.norm(dim=1)
    expected = (float(lengths.mean()) + float(lengths[3])) / 2
    assert found["magnitude_change_a"] == pytest.approx(expected, rel=1e-12)


def test_what_nobody_trains_and_what_nobody_knows_is_not_measured():
    members, sent = drifted(2), [start()] * 2
    found = movement(cohort(members, weights(1, 1), sent), Axis.RANK, (Part.B,))
    assert set(found) == {"magnitude_change_b", "direction_change_b"}
    assert movement(cohort(members, weights(1, 1), None), Axis.RANK, BOTH) == {}


def test_a_worker_that_came_back_with_another_rank_is_left_out():
    origin = start()
    pruned = LoraFactors(origin.a_RK[:2], origin.b_DR[:, :2])
    double = LoraFactors(2 * origin.a_RK, origin.b_DR)
    found = movement(cohort([pruned, double], weights(9, 1), [origin, origin]), Axis.RANK, BOTH)
    alone = movement(cohort([double], weights(1), [origin]), Axis.RANK, BOTH)
    assert found == pytest.approx(alone)
