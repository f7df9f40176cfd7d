"""FLoRIST: one pair with a given share of the energy, from the stacked factors."""

from __future__ import annotations

import pytest
import torch
from support.builders import drifted, normal, start, unrelated, weights
from support.dense_rounds import F32, effective, play, product
from support.recipes import combine
from support.reference import EPS, ideal, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.methods.flexlora import FlexLoRA
from aggregator_service.aggregation.methods.florist import FLoRIST
from aggregator_service.aggregation.module_cohort import GlobalModule
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason


def papers_pair(members, w, threshold):
    """The published pipeline, step by step: two decompositions of the stacks, then their core."""
    b_s = torch.cat([f.b_DR for f in members], dim=1)
    a_s = torch.cat([w[u] / w.sum() * f.a_RK for u, f in enumerate(members)])
    u_b, s_b, v_b = torch.linalg.svd(b_s, full_matrices=False)
    u_a, s_a, v_a = torch.linalg.svd(a_s, full_matrices=False)
    p, sigma, q = torch.linalg.svd((s_b[:, None] * v_b) @ (u_a * s_a))
    energy = sigma.square().cumsum(0) / sigma.square().sum()
    rank = int((energy < threshold).sum()) + 1
    return u_b @ p[:, :rank] * sigma[:rank], q[:rank] @ v_a


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("ranks", [[4, 4, 4], [1, 8, 3]])
def test_it_is_the_papers_pair(threshold, ranks):
    members, w = unrelated(ranks), weights(1, 2, 3)
    b, a = papers_pair(members, w, threshold)
    found = combine(FLoRIST(threshold=threshold), members, w).factors
    assert found.rank == a.shape[0]
    assert relative_error(found.delta_weight(), b @ a) < 1000 * EPS
    # The factors too, up to the sign of a component: B = U S, A = V^T.
    signs = (found.a_RK * a).sum(dim=1)
    torch.testing.assert_close(signs.abs(), torch.ones(found.rank).double())
    torch.testing.assert_close(found.b_DR, b * signs)


def test_one_number_worked_by_hand():
    # T = diag(4, 2, 1) / ... of three clients of rank 1: 16 + 4 = 20 of 21 is 95.2 %.
    eye = torch.eye(3, dtype=torch.float64)
    members = [
        LoraFactors(eye[i : i + 1], 3 * s * eye[:, i : i + 1]) for i, s in enumerate((4, 2, 1))
    ]
    w = weights(1, 1, 1)
    assert combine(FLoRIST(threshold=0.95), members, w).factors.rank == 2
    assert combine(FLoRIST(threshold=0.96), members, w).factors.rank == 3
    found = combine(FLoRIST(threshold=0.75), members, w)
    assert found.factors.rank == 1
    assert float(found.factors.delta_weight()[0, 0]) == pytest.approx(4, rel=1e-14)
    assert found.measurements["truncation_error"] == pytest.approx((5 / 21) ** 0.5, rel=1e-14)


def test_it_is_flexlora_at_its_own_rank():
    members, w = drifted(4), weights(1, 2, 3, 4)
    found = combine(FLoRIST(threshold=0.9), members, w).factors
    other = combine(FlexLoRA(), members, w, rank=found.rank).factors
    assert relative_error(found.delta_weight(), other.delta_weight()) < 1000 * EPS
    torch.testing.assert_close(found.a_RK, other.a_RK, rtol=0, atol=1e-10)


def test_more_components_than_the_layer_has():
    members, w = unrelated([20, 30]), weights(1, 2)
    found = combine(FLoRIST(threshold=1.0), members, w).factors
    assert found.rank == 17
    assert relative_error(found.delta_weight(), ideal(members, w)) < 1000 * EPS


def test_restarting_at_threshold_one_is_exact_over_rounds():
    first = GlobalModule(factors=LoraFactors(normal(1, 4, 17), torch.zeros(24, 4).double()))
    method = FLoRIST(threshold=1.0, restart=True)
    versions, wanted = play(
        method, first, weights(1, 2), rounds=3, rank=4, publication=F32, ranks=[4, 3]
    )
    for version, target in zip(versions, wanted, strict=True):
        assert relative_error(effective(version, target), target) < 1e-6


def test_restarting_below_it_loses_what_the_threshold_allows():
    members, w = unrelated([4, 6, 2]), weights(1, 2, 3)
    target = ideal(members, w)
    before = GlobalModule(factors=start(), base=start(r=2, seed=9))
    method = FLoRIST(threshold=0.9, restart=True)
    result = combine(method, members, w, rank=4, start=before)
    gained = product(result.base, target) - before.base.delta_weight()
    assert float((gained - target).square().sum()) <= 0.1 * float(target.square().sum())
    assert relative_error(gained, target) > 0.01
    assert result.factors.rank == 4
    assert not result.factors.b_DR.any()
    (plan,) = compose(method).plans()
    assert Part.BASE_A in plan.published
    assert Part.BASE_A not in compose(FLoRIST()).plans()[0].published


@pytest.mark.parametrize(
    "options", [{"threshold": 0.0}, {"min_rank": 0}, {"max_rank": -1}, {"max_base_rank": -1}]
)
def test_options_out_of_range_are_refused_when_a_run_is_configured(options):
    with pytest.raises(FedLoraError, match="energy: expected") as caught:
        FLoRIST(**options)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
