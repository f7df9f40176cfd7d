"""Laws that every aggregation method of the registry keeps, and the exceptions it declares.

They are stated on what a method makes of the model: the product B A it publishes, with what it adds
to the base. Each method is given a cohort that its own plan allows (`support.recipes.admissible`):
where A is frozen all members have one A, where B is private the product is A itself.

Tolerances: sums and decompositions in float64 leave a relative error of a few hundred eps for
layers of this size and condition; 1e-9 is far above that and far below any real difference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import drifted, normal, rotated_copies, start, unrelated, weights
from support.recipes import admissible, change, combine, whole_adapter_methods
from support.reference import ideal, mean_product, relative_error, tail_norm
from torch import Tensor

from aggregator_service.aggregation.base import ModuleResult, Publication
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.registry import METHODS
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason

TOLERANCE = 1e-9

every_method = pytest.mark.parametrize("name", sorted(METHODS))

KEPT = {"florist": 0.99**0.5}
"""methods that drop a part of the product on purpose, and the share of its norm that they keep"""

DIFFER = {"auto": 0.05}
"""methods that may take another of two equally good answers, and how far apart these may be"""

NOT_LINEAR = {"fedlora_optimizer"}
"""methods that do not average a factor as it is, also where the other one is common"""

BETTER_THAN_THE_MEAN = {"flora_na", "optimal", "flexlora", "lora_fair", "fedit"}
"""methods that promise an error no larger than that of averaging the factors"""


def slack(name: str) -> float:
    return (1 - KEPT[name] ** 2) ** 0.5 if name in KEPT else DIFFER.get(name, TOLERANCE)


def run(
    name: str,
    cohort: Sequence[LoraFactors],
    w: Tensor,
    *,
    rank: int | None = None,
    seed: int = 0,
    round: int = 1,
    origin: LoraFactors | None = None,
    partial: bool = False,
) -> tuple[ModuleResult, list[LoraFactors]]:
    """The result, and the members as the method's plan allows them."""
    context = admissible(METHODS[name], cohort, round=round, origin=origin, partial=partial)
    members = context.pop("members")
    largest = max(f.rank for f in members)
    result = combine(METHODS[name], members, w, rank=rank or largest, seed=seed, **context)
    return result, members


def rounds_of(name: str) -> range:
    return range(1, len(METHODS[name].plans) + 1)


@every_method
def test_one_client_gets_its_own_product_back(name):
    for round in rounds_of(name):
        result, (client,) = run(name, [start()], weights(3.0), round=round)
        assert relative_error(change(result), client.delta_weight()) < slack(name)


@every_method
def test_identical_clients_get_their_product_back(name):
    for round in rounds_of(name):
        result, members = run(name, [start()] * 4, weights(1, 2, 3, 4), round=round)
        assert relative_error(change(result), members[0].delta_weight()) < slack(name)


@every_method
def test_a_client_of_zero_weight_changes_no_bit(name):
    cohort, stranger, origin = drifted(4), start(seed=77), start()
    without, _ = run(name, cohort, weights(1, 2, 3, 4), origin=origin)
    with_it, _ = run(
        name, [*cohort[:2], stranger, *cohort[2:]], weights(1, 2, 0, 3, 4), origin=origin
    )
    assert torch.equal(without.factors.a_RK, with_it.factors.a_RK)
    assert torch.equal(without.factors.b_DR, with_it.factors.b_DR)
    assert torch.equal(change(without), change(with_it))


@every_method
def test_the_order_of_clients_does_not_matter(name):
    cohort, w, origin = drifted(5), weights(1, 2, 3, 4, 5), start()
    turned = [3, 0, 4, 2, 1]
    straight, _ = run(name, cohort, w, origin=origin)
    shuffled, _ = run(name, [cohort[i] for i in turned], w[turned], origin=origin)
    assert relative_error(change(shuffled), change(straight)) < max(1e-6, DIFFER.get(name, 0))


@every_method
def test_weights_count_by_their_ratios(name):
    cohort, origin = drifted(3), start()
    once, doubled, other = (
        run(name, cohort, weights(1, 2, 3) * c, origin=origin)[0] for c in (1.0, 512.0, 3.7)
    )
    # A power of two changes no bit of a weight's share.
    assert torch.equal(once.factors.a_RK, doubled.factors.a_RK)
    assert torch.equal(once.factors.b_DR, doubled.factors.b_DR)
    assert relative_error(change(other), change(once)) < max(TOLERANCE, DIFFER.get(name, 0))


@every_method
def test_a_cohort_listed_twice_gives_the_same_product(name):
    cohort, w, origin = drifted(3), weights(1, 2, 3), start()
    once, _ = run(name, cohort, w, origin=origin)
    twice, _ = run(name, cohort * 2, torch.cat([w, w]), origin=origin)
    assert relative_error(change(twice), change(once)) < max(1e-6, DIFFER.get(name, 0))


@every_method
def test_a_client_listed_twice_counts_double(name):
    first, second = drifted(2)
    for round in rounds_of(name):
        context = {"round": round, "origin": start()}
        listed, _ = run(name, [first, second, second], weights(1, 2, 2), **context)
        weighted, _ = run(name, [first, second], weights(1, 4), **context)
        moved = relative_error(change(listed), change(weighted))
        assert moved < max(1e-6, DIFFER.get(name, 0))


@every_method
def test_linear_is_what_needs_no_more_than_weighted_sums_of_what_is_sent(name):
    first, second, third = unrelated([4] * 3)
    # Two workers as one that sends their mean: the weighted sums are the same.
    both = LoraFactors((first.a_RK + 2 * second.a_RK) / 3, (first.b_DR + 2 * second.b_DR) / 3)
    recipe = compose(METHODS[name])
    for round in rounds_of(name):
        context = {"round": round, "origin": start()}
        apart, _ = run(name, [first, second, third], weights(1, 2, 3), **context)
        together, _ = run(name, [both, third], weights(3, 3), **context)
        moved = relative_error(change(together), change(apart))
        if recipe.properties.linear or recipe.weighting.sees_updates:
            # `run` is given the weights: what a rule that sees single updates made of them.
            assert moved < TOLERANCE
        else:
            assert moved > 1e-3


@every_method
def test_exact_is_what_says_that_it_is(name):
    recipe = compose(METHODS[name])
    for round in rounds_of(name):
        cohort, w = unrelated([4] * 4), weights(1, 2, 3, 4)
        result, members = run(name, cohort, w, round=round, partial=True)
        error = relative_error(change(result), ideal(members, w))
        if recipe.properties.exact:
            assert error < TOLERANCE
        elif round == len(METHODS[name].plans):
            assert error > 1e-3


@every_method
def test_a_common_factor_makes_every_method_exact(name):
    common = normal(5, 4, 17)
    cohort = [LoraFactors(common, normal(60 + u, 24, 4)) for u in range(4)]
    w = weights(1, 2, 3, 4)
    result, members = run(name, cohort, w)
    error = relative_error(change(result), ideal(members, w))
    if name in NOT_LINEAR:
        assert error > 1e-3
    else:
        assert error < slack(name)


@every_method
def test_a_gauge_change_is_seen_only_by_those_that_say_so(name):
    method, properties = METHODS[name], compose(METHODS[name]).properties
    if any(not {Part.A, Part.B} <= {*plan.trained} for plan in method.plans):
        pytest.skip("one factor is common to all: a client cannot change its gauge alone")
    mixed = [[4, 3, 2, 4]] if properties.mixed_ranks else []
    for ranks in ([4, 4, 4, 4], *mixed):
        drawn = zip(ranks, drifted(4), strict=True)
        cohort = [LoraFactors(f.a_RK[:r], f.b_DR[:, :r]) for r, f in drawn]
        w, origin, turned = weights(1, 2, 3, 4), start(), []
        for u, f in enumerate(cohort):
            g = torch.eye(f.rank, dtype=torch.float64) + 0.3 * normal(70 + u, f.rank, f.rank)
            turned.append(LoraFactors(torch.linalg.solve(g, f.a_RK), f.b_DR @ g))
        before, _ = run(name, cohort, w, origin=origin)
        after, _ = run(name, turned, w, origin=origin)
        moved = relative_error(change(after), change(before))
        if properties.gauge_free:
            assert moved < 1e-8
        else:
            assert moved > 1e-3


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_cohorts_shape_and_are_not_rounded(name, dtype):
    cohort = [f.to(dtype) for f in drifted(3)]
    result, members = run(name, cohort, weights(1, 1, 1), rank=6)
    factors = result.factors
    assert factors.dtype == torch.float64
    assert (factors.out_features, factors.in_features) == (members[0].out_features, 17)
    if name not in KEPT and not {Part.CORE, Part.SELECTED} & {*_extra_parts(name)}:
        assert factors.rank in (6, members[0].rank)


def _extra_parts(name: str) -> list[Part]:
    context = admissible(METHODS[name], drifted(1))
    return list(context["extras"][0])


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_updates_come_to_what_they_come_to_in_float64(name, dtype):
    # 1 + 2^-9 + .. would vanish term by term in bfloat16. The driver reads float32 as such.
    cohort = [f.to(dtype) for f in drifted(8, drift=0.01)]
    work = {"publication": Publication(dtype=torch.float64), "rank": cohort[0].rank}
    for round in rounds_of(name):
        context = admissible(METHODS[name], cohort, round=round, origin=start())
        members = context.pop("members")
        narrow, wide = (
            combine(METHODS[name], same, weights(*[1.0] * 8), **work, **context)
            for same in (members, [f.to(torch.float64) for f in members])
        )
        assert relative_error(change(narrow), change(wide)) < 1e-12
        assert narrow.measurements == pytest.approx(wide.measurements, rel=1e-9)


@every_method
def test_equal_seeds_give_equal_bits(name):
    cohort, w = unrelated([4] * 4), weights(4, 3, 2, 1)
    first, second = (run(name, cohort, w, seed=5)[0] for _ in range(2))
    assert torch.equal(first.factors.a_RK, second.factors.a_RK)
    assert torch.equal(first.factors.b_DR, second.factors.b_DR)
    assert first.measurements == second.measurements


@every_method
@pytest.mark.parametrize("rank", [1, 17, 24])
def test_results_are_finite_for_odd_ranks_and_lopsided_scales(name, rank):
    cohort = [
        LoraFactors(f.a_RK * 10.0 ** (3 * u - 3), f.b_DR * 10.0 ** (2 - 3 * u))
        for u, f in enumerate(unrelated([rank] * 3))
    ]
    result, _ = run(name, cohort, weights(1e-12, 1, 1e3))
    assert bool(torch.isfinite(change(result)).all())
    assert all(isinstance(v, float) for v in result.measurements.values())
    assert bool(torch.isfinite(torch.tensor(list(result.measurements.values()))).all())


@every_method
@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_nearly_collinear_clients_of_deficient_rank_are_combined_right(name, noise):
    origin = LoraFactors(normal(1, 4, 17), normal(2, 24, 4))
    origin = LoraFactors(torch.cat([origin.a_RK[:2]] * 2), torch.cat([origin.b_DR[:, :2]] * 2, 1))
    cohort = rotated_copies(5, origin, noise=noise)
    w = weights(1, 2, 3, 4, 5)
    result, members = run(name, cohort, w, origin=origin)
    assert bool(torch.isfinite(change(result)).all())
    if compose(METHODS[name]).properties.exact or name in ("optimal", "flexlora"):
        assert relative_error(change(result), ideal(members, w)) < 1e-6


@every_method
def test_two_hundred_clients_are_as_good_as_two(name):
    cohort, w = drifted(200, drift=0.05, r=2), weights(*(1 + u % 7 for u in range(200)))
    result, members = run(name, cohort, w)
    target = ideal(members, w)
    assert bool(torch.isfinite(change(result)).all())
    # Factor averaging is off by the covariance of the drift, a few per cent of the whole.
    assert relative_error(change(result), target) < 0.2


@every_method
def test_a_zero_update_stays_zero_and_can_still_learn(name):
    plan = METHODS[name].plans[0]
    if Part.B not in plan.trained:
        pytest.skip("B is not what this round trains")
    first = start()
    cohort = [LoraFactors(first.a_RK, torch.zeros_like(first.b_DR))] * 3
    result, _ = run(name, cohort, weights(1, 1, 1))
    assert float(change(result).abs().max()) < 1e-12
    # The gradient of B is G A^T: rows of A must not vanish with B.
    a_norms = result.factors.a_RK.norm(dim=1)
    b_norms = result.factors.b_DR.norm(dim=0)
    assert bool(((a_norms > 0.1) | (b_norms > 0.1)).all())


@every_method
def test_mixed_ranks_are_taken_or_refused_as_it_declares(name):
    cohort, w = unrelated([2, 4, 3]), weights(1, 2, 3)
    if compose(METHODS[name]).properties.mixed_ranks:
        result, _ = run(name, cohort, w, rank=4)
        assert bool(torch.isfinite(change(result)).all())
        return
    with pytest.raises(FedLoraError, match=rf"{name} needs one rank .*\[2, 3, 4\]") as caught:
        run(name, cohort, w)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    whole = {n for n in whole_adapter_methods() if compose(METHODS[n]).properties.mixed_ranks}
    named = re.findall(r"\w+", caught.value.hint.removeprefix("Use ").split(", which")[0])
    assert {*named} - {"or"} == whole


@every_method
@pytest.mark.parametrize("bad", [(0.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, 2.0, 3.0)])
def test_weights_that_make_no_cohort_are_refused(name, bad):
    with pytest.raises(FedLoraError, match="weights") as caught:
        run(name, drifted(2), weights(*bad))
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@every_method
def test_members_of_different_shape_are_refused(name):
    with pytest.raises(FedLoraError, match="one module must have one shape") as caught:
        combine(METHODS[name], [start(), start(k=16)], weights(1, 1), names=["anna", "ben"])
    assert "24x17 torch.float64 on cpu from 'anna' and 24x16" in caught.value.message
    assert "from 'ben'" in caught.value.message


@every_method
def test_a_cohort_of_nobody_is_refused(name):
    with pytest.raises(FedLoraError, match="a cohort needs updates, got none") as caught:
        compose(METHODS[name]).aggregate_module(ModuleCohort.of([], weights()), rank=4)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@every_method
@given(
    d=st.integers(1, 14),
    k=st.integers(1, 14),
    count=st.integers(1, 5),
    rank=st.integers(1, 6),
    drift=st.floats(1e-6, 10.0),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=20, deadline=None)
def test_errors_are_ordered_for_any_cohort_of_any_shape(name, d, k, count, rank, drift, seed):
    recipe = compose(METHODS[name])
    w = weights(*[1.0 + (u * seed) % 3 for u in range(count)])
    for round in rounds_of(name):
        cohort = drifted(count, drift=drift, r=rank, d=d, k=k, seed=seed)
        result, members = run(name, cohort, w, round=round, origin=start(d, k, rank, seed))
        target, got = ideal(members, w), change(result)
        assert got.shape == target.shape
        error = float((got - target).norm())
        # Dense products of factors of size 10 lose a few hundred eps.
        room = 1e-11 * max(float(f.a_RK.norm() * f.b_DR.norm()) for f in members)
        if not recipe.properties.changes_base:
            assert error >= tail_norm(target, result.factors.rank) - room
        if recipe.properties.exact:
            assert error <= room
        if name in BETTER_THAN_THE_MEAN:
            assert error <= float((mean_product(members, w) - target).norm()) + room
        assert all(map(math.isfinite, result.measurements.values()))
