"""FedRot-LoRA: every client turned towards a reference, then averaged."""

from __future__ import annotations

import math

import pytest
import torch
from support.builders import drifted, normal, rotated_copies, start, unrelated, weights
from support.recipes import combine
from support.reference import EPS, ideal, mean_product, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedrot_lora import FedRotLoRA, rotation
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors

W = weights(1, 2, 3)


def turned_by(angle):
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def cost(member, reference, o):
    """What the rotation minimises, for balanced references."""
    t = float((reference.b_DR.norm() / reference.a_RK.norm()).sqrt())
    a, b = o.T @ member.a_RK - reference.a_RK, member.b_DR @ o - reference.b_DR
    return float((t * a).square().sum() + (b / t).square().sum())


def begun(factors):
    return {"start": GlobalModule(factors=factors)}


@pytest.mark.parametrize("angle", [0.3, math.pi / 2, -2.5])
def test_a_turn_worked_by_hand(angle):
    # (B O, O^T A) of a client that is the reference turned by an angle: turned back by it.
    reference, turn = start(r=2), turned_by(angle)
    member = LoraFactors(turn @ reference.a_RK, reference.b_DR @ turn.T)
    torch.testing.assert_close(rotation(member, reference), turn, rtol=0, atol=100 * EPS)
    # |O - I| = sqrt(2 (2 - 2 cos)) = 2 sqrt(2) |sin(angle / 2)|, as a share of 2 sqrt(2).
    found = combine(FedRotLoRA(), [member], weights(1), **begun(reference)).measurements
    wanted = abs(math.sin(angle / 2))
    assert found["largest_rotation"] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("shape", [(24, 17, 4), (5, 3, 4), (6, 4, 8)])
def test_a_rotation_is_orthogonal_and_keeps_the_product(shape):
    d, k, r = shape
    member, reference = start(d, k, r, 1), start(d, k, r, 9)
    o = rotation(member, reference)
    identity = torch.eye(r, dtype=torch.float64)
    torch.testing.assert_close(o.T @ o, identity, rtol=0, atol=50 * r * EPS)
    turned = LoraFactors(o.T @ member.a_RK, member.b_DR @ o)
    assert relative_error(turned.delta_weight(), member.delta_weight()) < 100 * r * EPS


def test_no_other_rotation_comes_nearer():
    reference, member = start(), drifted(1, drift=1.0)[0]
    found = cost(member, reference, rotation(member, reference))
    generators = [normal(70 + s, 4, 4) for s in range(40)]
    for skew in generators:
        for step in (1e-3, 0.1, 1.0):
            other = rotation(member, reference) @ torch.linalg.matrix_exp(step * (skew - skew.T))
            assert cost(member, reference, other) > found


def test_unbalanced_references_give_both_factors_their_say():
    reference, member = start(), drifted(1, drift=1.0)[0]
    scaled = LoraFactors(1e4 * reference.a_RK, 1e-4 * reference.b_DR)
    one = rotation(LoraFactors(1e4 * member.a_RK, 1e-4 * member.b_DR), scaled)
    torch.testing.assert_close(one, rotation(member, reference), rtol=0, atol=1e-11)


@pytest.mark.parametrize("known", [True, False])
def test_clients_that_differ_by_rotations_alone_are_averaged_exactly(known):
    origin = start()
    members = rotated_copies(3, origin)
    found = combine(FedRotLoRA(), members, W, **(begun(origin) if known else {})).factors
    assert relative_error(found.delta_weight(), ideal(members, W)) < 100 * EPS
    assert relative_error(mean_product(members, W), ideal(members, W)) > 0.3


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("known", [True, False])
def test_it_is_nearer_than_the_factor_mean_for_rotated_clients(noise, known):
    origin = start()
    members = rotated_copies(3, origin, noise=noise)
    found = combine(FedRotLoRA(), members, W, **(begun(origin) if known else {})).factors
    target = ideal(members, W)
    aligned = relative_error(found.delta_weight(), target)
    assert aligned < relative_error(mean_product(members, W), target)
    assert aligned < noise


def test_it_is_the_factor_mean_of_the_dense_alignment():
    origin, members = start(), drifted(3, drift=1.0)
    t = float((origin.b_DR.norm() / origin.a_RK.norm()).sqrt())
    turned = []
    for f in members:
        # [t A^T; B / t] O is nearest to [t A_0^T; B_0 / t]: the polar factor, by its definition.
        stacked = torch.cat([t * f.a_RK.T, f.b_DR / t])
        wanted = torch.cat([t * origin.a_RK.T, origin.b_DR / t])
        n = stacked.T @ wanted
        values, vectors = torch.linalg.eigh(n.T @ n)
        o = n @ (vectors / values.sqrt()) @ vectors.T
        turned.append(LoraFactors(o.T @ f.a_RK, f.b_DR @ o))
    found = combine(FedRotLoRA(), members, W, **begun(origin)).factors
    assert relative_error(found.delta_weight(), mean_product(turned, W)) < 1e-11


def test_clients_at_the_reference_are_not_turned():
    origin = start()
    result = combine(FedRotLoRA(), [origin, origin], weights(1, 1), **begun(origin))
    torch.testing.assert_close(result.factors.a_RK, origin.a_RK, rtol=0, atol=100 * EPS)
    assert result.measurements["largest_rotation"] < 100 * EPS


def test_a_first_round_turns_by_a_alone():
    origin = LoraFactors(start().a_RK, torch.zeros(24, 4, dtype=torch.float64))
    turn = torch.linalg.qr(normal(5, 4, 4))[0]
    member = LoraFactors(turn @ origin.a_RK, normal(6, 24, 4))
    torch.testing.assert_close(rotation(member, origin), turn, rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("seed", range(5))
def test_what_the_reference_does_not_determine_is_not_turned(seed):
    # The reference knows two components only; the client has them in place, and two more that
    # overlap with neither.
    known, free = (0, 2), (1, 3)
    origin = start(seed=seed)
    a, b = origin.a_RK.clone(), origin.b_DR.clone()
    a[free, :], b[:, free] = 0, 0
    member = LoraFactors(a.clone(), b.clone())
    for matrix, others in ((member.a_RK, a[known, :]), (member.b_DR.T, b[:, known].T)):
        span = torch.linalg.qr(torch.cat([others, normal(seed + 7, 2, others.shape[1])]).T)[0]
        matrix[free, :] = span.T[2:]
    # In a common random basis, in which no decomposition finds the two spaces by itself.
    turn = torch.linalg.qr(normal(seed + 60, 4, 4))[0]
    member, reference = (
        LoraFactors(turn @ f.a_RK, f.b_DR @ turn.T) for f in (member, LoraFactors(a, b))
    )
    identity = torch.eye(4, dtype=torch.float64)
    found = rotation(member, reference)
    torch.testing.assert_close(found, identity, rtol=0, atol=1000 * EPS)


def test_a_reference_of_nothing_turns_nobody():
    nothing = LoraFactors(torch.zeros(4, 17).double(), torch.zeros(24, 4).double())
    identity = torch.eye(4, dtype=torch.float64)
    found = rotation(start(), nothing)
    torch.testing.assert_close(found, identity, rtol=0, atol=100 * EPS)


def test_without_a_start_the_member_of_most_weight_is_the_reference():
    members = drifted(3, drift=1.0)
    alone = combine(FedRotLoRA(), members, W, **begun(members[2])).factors
    found = combine(FedRotLoRA(), members, W).factors
    assert torch.equal(found.a_RK, alone.a_RK)
    order = [2, 0, 1]
    other = combine(FedRotLoRA(), [members[u] for u in order], W[torch.tensor(order)]).factors
    assert relative_error(other.delta_weight(), found.delta_weight()) < 100 * EPS


def test_one_client_keeps_its_product():
    (member,) = unrelated([4])
    found = combine(FedRotLoRA(), [member], weights(2), **begun(start())).factors
    assert relative_error(found.delta_weight(), member.delta_weight()) < 100 * EPS


def test_what_a_run_is_told():
    recipe = compose(FedRotLoRA())
    assert not recipe.properties.exact
    assert not recipe.properties.linear
    assert recipe.properties.keeps_basis
