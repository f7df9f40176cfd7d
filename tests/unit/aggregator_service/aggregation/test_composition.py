"""What goes together, what is refused before a run begins, and with which reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.builders import drifted, start, weights
from support.recipes import combine
from support.reference import ideal
from support.runs import run_spec

from aggregator_service.aggregation.base import Publication
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.compression.energy import Energy
from aggregator_service.aggregation.compression.truncate import Truncate
from aggregator_service.aggregation.factor_means import factor_mean
from aggregator_service.aggregation.gauge import NEAREST
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.module_cohort import GlobalModule
from aggregator_service.aggregation.registry import (
    COMPRESSIONS,
    METHODS,
    SERVER_OPTIMIZERS,
    WEIGHTINGS,
    create_recipe,
)
from aggregator_service.aggregation.run_checks import check_kind, check_run, check_saved
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.method import Gauge, MethodSpec, RuleSpec


def recipe(name, *, gauge="own", **rules):
    given = {key: RuleSpec(name=value) for key, value in rules.items()}
    return create_recipe(MethodSpec(name=name, gauge=Gauge(gauge), **given))


def refused(match, name, **rules):
    with pytest.raises(FedLoraError, match=match) as caught:
        recipe(name, **rules)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert caught.value.hint
    return caught.value


def test_what_is_left_out_is_the_methods_own():
    made = compose(METHODS["flexlora"])
    assert made.compression == METHODS["flexlora"].compression
    assert made.weighting.name == "num_examples"
    assert made.server_optimizer is None


@pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if m.weighting is not None))
def test_two_weightings_are_one_too_many(name):
    own = METHODS[name].weighting.name
    refused(
        rf"{name} weighs updates itself \({own}\).*uniform would have no effect",
        name,
        weighting="uniform",
    )


@pytest.mark.parametrize("optimizer", sorted(SERVER_OPTIMIZERS))
@pytest.mark.parametrize("name", sorted(METHODS))
def test_server_optimisers_need_components_that_last_and_both_factors(name, optimizer):
    promised = compose(METHODS[name]).properties
    moves_both = all({Part.A, Part.B} <= {*p.published} for p in METHODS[name].plans)
    if promised.keeps_basis and moves_both:
        assert recipe(name, server_optimizer=optimizer).server_optimizer is not None
    elif promised.keeps_basis:
        refused("leaves [AB] as it is in some rounds", name, server_optimizer=optimizer)
    else:
        refused("publishes other components every round", name, server_optimizer=optimizer)


@pytest.mark.parametrize("rule", sorted(COMPRESSIONS))
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_pair_of_method_and_compression_is_taken_or_refused_with_a_reason(name, rule):
    try:
        made = recipe(name, compression=rule)
    except FedLoraError:
        refused(f"{rule}", name, compression=rule)
        return
    changed = made.properties.changes_base
    assert all((Part.BASE_A in plan.published) == changed for plan in made.plans())


@pytest.mark.parametrize("rule", ["merge", "residual", "reset"])
def test_what_a_method_keeps_itself_is_not_added_to_the_base_model_as_well(rule):
    error = refused(f"{rule} adds what was learnt to the base model", "fedhl", compression=rule)
    assert "truncate" in error.hint


@pytest.mark.parametrize("gauge", sorted(NEAREST))
def test_a_gauge_near_the_version_before_lets_a_server_optimiser_remember(gauge):
    refused(
        "optimal with truncate in the gauge own publishes other",
        "optimal",
        server_optimizer="fedadam",
    )
    assert recipe("optimal", gauge=gauge, server_optimizer="fedadam").properties.keeps_basis
    refused("gauge balanced publishes", "fedit", gauge="balanced", server_optimizer="fedadam")


@pytest.mark.parametrize("known", [True, False])
def test_a_gauge_stays_near_where_the_round_began_or_else_near_the_factor_mean(known):
    members, w = drifted(3), weights(1, 2, 3)
    near = start() if known else factor_mean(members, w / 6)
    context = {"start": GlobalModule(factors=start())} if known else {}
    found = combine(recipe("optimal", gauge="closest_a"), members, w, **context).factors
    _, _, vh = torch.linalg.svd(ideal(members, w))
    torch.testing.assert_close(found.a_RK, near.a_RK @ vh[:4].T @ vh[:4], rtol=0, atol=1e-11)


def test_the_server_optimiser_steps_in_the_gauge_that_is_published():
    members, w, origin = drifted(3), weights(1, 2, 3), GlobalModule(factors=start())
    near = recipe("optimal", gauge="closest_a")
    reached = combine(near, members, w, start=origin).factors
    halfway = RuleSpec(name="fedavgm", options={"beta": 0.0, "learning_rate": 0.5})
    spec = MethodSpec(name="optimal", gauge=Gauge.CLOSEST_A, server_optimizer=halfway)
    half = combine(create_recipe(spec), members, w, start=origin).factors
    torch.testing.assert_close(half.a_RK, (start().a_RK + reached.a_RK) / 2)
    torch.testing.assert_close(half.b_DR, (start().b_DR + reached.b_DR) / 2)


@pytest.mark.parametrize("rule", ["residual", "merge", "reset"])
def test_a_gauge_is_no_choice_where_the_base_model_changes_too(rule):
    error = refused("the base model holds the rest", "fedit", gauge="balanced", compression=rule)
    assert "every gauge" in error.hint


def test_a_gauge_that_is_not_sorted_is_refused_where_first_components_count():
    refused("have to be the strongest", "fedhl", gauge="procrustes")
    assert recipe("fedhl", gauge="orthonormal_b").gauge is Gauge.ORTHONORMAL_B


@pytest.mark.parametrize("gauge", sorted(NEAREST))
@pytest.mark.parametrize("method", ["optimal", "fedit"])
def test_energy_publishes_ranks_of_its_own_of_which_workers_have_the_first_components(
    method, gauge
):
    refused("have to be the strongest", method, gauge=gauge, compression="energy")
    assert recipe(method, gauge="balanced", compression="energy").gauge is Gauge.BALANCED


def test_magnitudes_are_fitted_to_the_factors_that_are_published():
    seen = []

    class Watched(FedIT):
        def magnitude(self, cohort, published):
            seen.append(published)
            return super().magnitude(cohort, published)

    members = drifted(3)
    magnitudes = [{Part.MAGNITUDE: torch.ones(24).double()}] * 3
    result = combine(
        compose(Watched(), gauge=Gauge.BALANCED),
        members,
        weights(1, 2, 3),
        extras=magnitudes,
        publication=Publication(dtype=torch.bfloat16),
    )
    read = Publication(dtype=torch.bfloat16).read_back(result.factors)
    assert torch.equal(seen[0].a_RK, read.a_RK)
    assert torch.equal(seen[0].b_DR, read.b_DR)
    assert not torch.equal(
        read.a_RK, combine(FedIT(), members, weights(1, 2, 3)).factors.a_RK.bfloat16().double()
    )


def test_the_plan_asks_for_what_the_weighting_needs():
    rules = [w for w in WEIGHTINGS.values() if w.required_metrics]
    assert rules
    for rule in rules:
        plans = recipe("fedit", weighting=rule.name).plans()
        assert set(rule.required_metrics) <= set(plans[0].required_metrics)


def test_dora_trains_and_publishes_magnitudes():
    plan = compose(METHODS["fedit"]).plans(AdapterKind.DORA)[0]
    assert Part.MAGNITUDE in plan.trained
    assert Part.MAGNITUDE in plan.published


def test_a_run_of_another_family_is_refused():
    spec = run_spec(method="ffa_lora")
    spec = replace(spec, adapter=replace(spec.adapter, kind=AdapterKind.HIRA))
    unable = next(n for n, m in METHODS.items() if AdapterKind.HIRA not in m.properties.kinds)
    with pytest.raises(FedLoraError, match=rf"{unable} combines adapters of kind .*, got hira"):
        check_run(compose(METHODS[unable]), spec, has_base_weights=True)


class Trimmed(FedIT):
    """As another package's may be."""

    name = "trimmed"
    properties = replace(FedIT.properties, min_clients=3)


def test_saved_adapters_fewer_than_the_method_needs_are_refused():
    check_saved(compose(Trimmed()), count=3, has_start=False)
    with pytest.raises(FedLoraError, match="trimmed needs at least 3 adapters, got 2") as caught:
        check_saved(compose(Trimmed()), count=2, has_start=False)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD


def test_a_quorum_below_what_the_method_needs_is_refused():
    needy = compose(Trimmed())
    spec = run_spec(num_workers=3)
    message = r"at least 3 workers, and rounds\.quorum is 2"
    with pytest.raises(FedLoraError, match=message) as caught:
        check_run(
            needy, replace(spec, rounds=replace(spec.rounds, quorum=2)), has_base_weights=False
        )
    assert caught.value.hint == "Set rounds.quorum = 3"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": MethodSpec(name="fedlora_optimizer")}, "magnitudes of its own"),
        ({"plugins": (RuleSpec(name="ditto"),)}, "the plug-in ditto"),
        ({"plugins": (RuleSpec(name="fednova"),)}, "needs .* with every update"),
        (
            {"method": MethodSpec(name="fedit", weighting=RuleSpec(name="loss_reduction"))},
            "needs loss_reduction with every update",
        ),
    ],
)
def test_what_counts_on_every_worker_is_refused_where_some_have_nothing_to_train_on(changes, named):
    stream = ContinualSpec(order=("x", "y"), sizes=(1, 1), rounds_per_experience=1, column="z")
    spec = replace(run_spec(), continual=stream, **changes)
    made = create_recipe(spec.method, spec.plugins)
    with pytest.raises(FedLoraError, match=rf"\[continual\] .* {named}"):
        check_run(made, spec, has_base_weights=False)
    check_run(made, replace(spec, continual=None), has_base_weights=False)


def test_a_personal_stage_without_evaluations_would_never_come_and_is_refused():
    spec = run_spec(evaluate=False)
    with pytest.raises(FedLoraError, match=r"rounds\.evaluate is false") as caught:
        check_run(recipe("fedlora_optimizer"), spec, has_base_weights=False)
    assert "personal_epochs = 0" in caught.value.hint
    without = create_recipe(MethodSpec(name="fedlora_optimizer", options={"personal_epochs": 0}))
    check_run(without, spec, has_base_weights=False)


@pytest.mark.parametrize("rule", ["truncate", "energy"])
@pytest.mark.parametrize(
    "name", ["aflora", "fed_sb", "fedsa_lora", "ffa_lora", "lora_a2", "rolora"]
)
def test_new_factors_are_refused_where_one_of_them_would_not_be_published(name, rule):
    error = refused(f"{rule} makes other factors of a .* and {name}", name, compression=rule)
    assert "trains both factors" in error.hint


@pytest.mark.parametrize("name", ["aflora", "ffa_lora", "lora_a2", "rolora"])
def test_a_random_b_is_refused_beside_an_a_that_stays_as_it_is(name):
    drawn = RuleSpec(name="merge", options={"drawn": "b"})
    with pytest.raises(FedLoraError, match=f"{name} leaves A as it is in some rounds"):
        create_recipe(MethodSpec(name=name, compression=drawn))
    assert recipe(name, compression="merge").properties.changes_base
    assert create_recipe(MethodSpec(name="fedit", compression=drawn)).properties.changes_base


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_stack_of_products_is_no_adapter_of_the_runs_rank_to_keep(name):
    made = recipe(name, compression="keep")
    if name in ("optimal", "fedhl", "flora", "flexlora", "florist"):
        with pytest.raises(FedLoraError, match=f"keep publishes .* that of {name} is") as caught:
            check_run(made, run_spec(method=name), has_base_weights=False)
        assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    else:
        check_run(made, run_spec(method=name), has_base_weights=False)


@pytest.mark.parametrize("rule", ["merge", "residual", "reset"])
def test_a_part_between_factors_is_not_added_to_the_base_model_and_published_as_well(rule):
    for name in ("fedsa_lora", "fed_sb"):
        refused("a matrix that goes with the factors", name, compression=rule)
    assert recipe("ffa_lora", compression=rule).properties.changes_base


def test_options_that_read_the_frozen_weights_need_them_and_their_family():
    made = create_recipe(MethodSpec(name="flora_na", options={"hadamard": "weighted"}))
    check_kind(made, AdapterKind.HIRA, has_base_weights=True)
    with pytest.raises(FedLoraError, match="reads the frozen weights") as caught:
        check_kind(made, AdapterKind.HIRA, has_base_weights=False)
    assert "server.base_weights" in caught.value.hint
    with pytest.raises(FedLoraError, match="for adapters of kind hira, got lora"):
        check_kind(made, AdapterKind.LORA, has_base_weights=True)


@pytest.mark.parametrize("rule", [Truncate(), Energy()], ids=lambda rule: rule.name)
def test_a_compression_makes_no_method_take_the_ranks_it_refuses(rule):
    for name in ("fedit", "flora_na"):
        recipe = compose(METHODS[name], compression=rule)
        assert recipe.properties.mixed_ranks is METHODS[name].properties.mixed_ranks
