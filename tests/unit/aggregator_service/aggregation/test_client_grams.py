"""Gram matrices of a cohort from blocks of pairs, against the matrices themselves."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, start, weights

from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.client_grams import ClientGrams
from fedlora.adapters.factors import LoraFactors


def grams_of(members, origin):
    """Straight from the definition."""
    rank = origin.rank
    wide = [f.padded(rank) for f in members]
    left = torch.cat([origin.b_DR, *(f.b_DR - origin.b_DR for f in wide)], dim=1)
    right = torch.cat([origin.a_RK, *(f.a_RK - origin.a_RK for f in wide)])
    return ClientGrams(left.T @ left, right @ right.T, tuple(f.rank for f in members))


@pytest.mark.parametrize("ranks", [(4, 4, 4), (2, 4, 3)])
def test_the_stack_is_that_of_the_clients_own_components(ranks):
    members = [
        LoraFactors(f.a_RK[:r], f.b_DR[:, :r]) for f, r in zip(drifted(3), ranks, strict=True)
    ]
    left, right = grams_of(members, start()).stack()
    b = torch.cat([f.b_DR for f in members], dim=1)
    a = torch.cat([f.a_RK for f in members])
    torch.testing.assert_close(left, b.T @ b)
    torch.testing.assert_close(right, a @ a.T)


@pytest.mark.parametrize("drift", [0.3, 1e-4])
def test_the_centred_ones_keep_their_digits_where_clients_barely_differ(drift):
    members, w = drifted(4, drift=drift), weights(0.1, 0.2, 0.3, 0.4)
    left, right = grams_of(members, start()).centred(w)
    centred = CentredCohort.of(members, w, reference=start())
    b = torch.cat([centred.mean.b_DR, *(f.b_DR for f in centred.deviations)], dim=1)
    a = torch.cat([centred.mean.a_RK, *(f.a_RK for f in centred.deviations)])
    for found, expected in ((left, b.T @ b), (right, a @ a.T)):
        small = found[4:, 4:]
        torch.testing.assert_close(small, expected[4:, 4:], rtol=1e-10, atol=1e-12 * drift**2)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        assert torch.equal(found, found.T)


def test_a_block_of_weights_one_is_the_client_itself():
    (member,) = drifted(1)
    left, _ = grams_of([member], start()).centred(weights(1.0))
    torch.testing.assert_close(left[:4, :4], member.b_DR.T @ member.b_DR)
    assert float(left[4:].abs().max()) < 1e-12
