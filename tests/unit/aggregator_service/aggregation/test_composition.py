"""What goes together, what is refused before a run begins, and with which reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.runs import run_spec

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.registry import (
    COMPRESSIONS,
    METHODS,
    SERVER_OPTIMIZERS,
    WEIGHTINGS,
    create_recipe,
)
from aggregator_service.aggregation.run_checks import check_kind, check_run
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.spec import MethodSpec, RuleSpec


def recipe(name, **rules):
    given = {key: RuleSpec(name=value) for key, value in rules.items()}
    return create_recipe(MethodSpec(name=name, **given))


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


def test_two_weightings_are_one_too_many():
    refused(
        "hetlora weighs updates itself .update_norm.*uniform would have no effect",
        "hetlora",
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


def test_a_quorum_below_what_the_method_needs_is_refused():
    needy = compose(METHODS["fedit"])
    needy = replace(needy, properties=replace(needy.properties, min_clients=3))
    spec = run_spec(num_workers=3)
    message = r"at least 3 workers, and rounds\.quorum is 2"
    with pytest.raises(FedLoraError, match=message) as caught:
        check_run(
            needy, replace(spec, rounds=replace(spec.rounds, quorum=2)), has_base_weights=False
        )
    assert caught.value.hint == "Set rounds.quorum = 3"


def test_a_personal_stage_without_evaluations_would_never_come_and_is_refused():
    spec = run_spec(evaluate=False)
    with pytest.raises(FedLoraError, match=r"rounds\.evaluate is false") as caught:
        check_run(recipe("fedlora_optimizer"), spec, has_base_weights=False)
    assert "personal_epochs = 0" in caught.value.hint
    without = create_recipe(MethodSpec(name="fedlora_optimizer", options={"personal_epochs": 0}))
    check_run(without, spec, has_base_weights=False)


def test_options_that_read_the_frozen_weights_need_them_and_their_family():
    made = create_recipe(MethodSpec(name="flora_na", options={"hadamard": "weighted"}))
    check_kind(made, AdapterKind.HIRA, has_base_weights=True)
    with pytest.raises(FedLoraError, match="reads the frozen weights") as caught:
        check_kind(made, AdapterKind.HIRA, has_base_weights=False)
    assert "server.base_weights" in caught.value.hint
    with pytest.raises(FedLoraError, match="for adapters of kind hira, got lora"):
        check_kind(made, AdapterKind.LORA, has_base_weights=True)
