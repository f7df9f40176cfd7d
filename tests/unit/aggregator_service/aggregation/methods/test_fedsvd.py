"""FedSVD: the mean of B over a common A, refactored with orthonormal rows."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, weights
from support.dense_rounds import F32, play
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.fedsvd import FedSVD
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason

A = normal(3, 4, 17)


def over(a, ranks, seed=0):
    return [LoraFactors(a[:r], normal(40 + seed + u, 24, r)) for u, r in enumerate(ranks)]


def orthonormal(a):
    return float((a @ a.T - torch.eye(len(a)).double()).norm())


def test_one_number_worked_by_hand():
    # B = (3, 0), A = (4, 0): the product has one singular value, 12.
    a = torch.tensor([[4.0, 0.0]], dtype=torch.float64)
    members = [LoraFactors(a, torch.tensor([[b], [0.0]]).double()) for b in (2.0, 4.0)]
    found = combine(FedSVD(), members, weights(1, 1)).factors
    expected_b, expected_a = torch.tensor([[12.0], [0.0]]), torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(found.b_DR, expected_b.double(), rtol=0, atol=100 * EPS)
    torch.testing.assert_close(found.a_RK, expected_a.double(), rtol=0, atol=100 * EPS)


@pytest.mark.parametrize("ranks", [[4, 4, 4], [2, 4, 3], [4]])
def test_it_is_exact_and_its_rows_are_orthonormal(ranks):
    members, w = over(A, ranks), weights(*range(1, len(ranks) + 1))
    result = combine(FedSVD(), members, w)
    assert relative_error(result.factors.delta_weight(), ideal(members, w)) < 1000 * EPS
    assert orthonormal(result.factors.a_RK) < 100 * EPS
    assert result.base is None


def test_the_factors_are_the_dense_decompositions():
    members, w = over(A, [4, 4, 4]), weights(1, 2, 3)
    u, s, vh = torch.linalg.svd(ideal(members, w), full_matrices=False)
    found = combine(FedSVD(), members, w).factors
    signs = (found.a_RK * vh[:4]).sum(dim=1)
    torch.testing.assert_close(signs.abs(), torch.ones(4).double())
    torch.testing.assert_close(found.b_DR, u[:, :4] * s[:4] * signs)
    assert bool((found.b_DR.abs().amax(dim=0) == found.b_DR.amax(dim=0)).all())


def test_the_rows_span_what_they_spanned_before():
    members, w = over(A, [4, 4]), weights(1, 2)
    rows = combine(FedSVD(), members, w).factors.a_RK
    held = A @ rows.T @ rows
    assert relative_error(held, A) < 1000 * EPS


@pytest.mark.parametrize("b", [torch.zeros(24, 4), normal(1, 24, 1) @ normal(2, 1, 4)])
def test_directions_without_a_singular_value_stay_in_that_space(b):
    # As in a round in which nobody learnt: the basis is completed, and no number is drawn.
    members = [LoraFactors(A, b.double())] * 2
    one, other = (combine(FedSVD(), members, weights(1, 1), seed=s).factors for s in (1, 2))
    assert torch.equal(one.a_RK, other.a_RK)
    assert orthonormal(one.a_RK) < 100 * EPS
    assert relative_error(A @ one.a_RK.T @ one.a_RK, A) < 1000 * EPS
    gap = float((one.delta_weight() - ideal(members, weights(1, 1))).norm())
    assert gap < 1000 * EPS * max(1.0, float(b.norm()))


def test_rows_that_no_member_has_keep_their_place_in_the_space():
    first = GlobalModule(factors=LoraFactors(A, normal(9, 24, 4)))
    members, w = over(A, [2, 3]), weights(1, 1)
    found = combine(FedSVD(), members, w, rank=4, start=first).factors
    assert orthonormal(found.a_RK) < 100 * EPS
    assert relative_error(A @ found.a_RK.T @ found.a_RK, A) < 1000 * EPS
    assert relative_error(found.delta_weight(), ideal(members, w)) < 1000 * EPS


def test_it_is_exact_over_rounds_in_which_a_turns():
    first = GlobalModule(factors=F32.read_back(start()))
    versions, wanted = play(FedSVD(), first, weights(1, 2, 3), rounds=3, rank=4, parts=(Part.B,))
    before = first.factors.a_RK
    for version, target in zip(versions, wanted, strict=True):
        assert relative_error(version.factors.delta_weight(), target) < 1e-6
        assert orthonormal(version.factors.a_RK) < 1e-6
        assert float((version.factors.a_RK - before).norm()) > 1e-3
        before = version.factors.a_RK


@pytest.mark.parametrize("rank", [17, 20, 30])
def test_ranks_up_to_and_beyond_the_layers_size(rank):
    a = normal(4, rank, 17)
    members, w = over(a, [rank, rank]), weights(1, 2)
    found = combine(FedSVD(), members, w).factors
    assert found.rank == rank
    assert relative_error(found.delta_weight(), ideal(members, w)) < 1e4 * EPS
    assert orthonormal(found.a_RK[:17]) < 1000 * EPS
    assert not found.b_DR[:, 17:].any()
    assert bool((found.a_RK.norm(dim=1) > 0.5).all())


def test_more_components_than_outputs():
    a = normal(4, 10, 17)
    members = [LoraFactors(a, normal(50 + u, 5, 10)) for u in range(2)]
    found = combine(FedSVD(), members, weights(1, 2)).factors
    assert relative_error(found.delta_weight(), ideal(members, weights(1, 2))) < 1000 * EPS
    assert orthonormal(found.a_RK) < 100 * EPS


def test_what_a_run_is_told():
    recipe = compose(FedSVD())
    (plan,) = recipe.plans()
    assert plan.trained == (Part.B,)
    assert plan.published == (Part.A, Part.B)
    assert recipe.properties.exact
    assert recipe.properties.linear
    assert not recipe.properties.keeps_basis


def test_adapters_trained_in_both_factors_are_refused():
    with pytest.raises(FedLoraError, match="fedsvd needs one lora_A for the whole") as caught:
        combine(FedSVD(), drifted(3), weights(1, 1, 1))
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    with pytest.raises(FedLoraError, match=r"fedsvd .* cannot publish rank 2"):
        combine(FedSVD(), over(A, [4, 4]), weights(1, 1), rank=2)
