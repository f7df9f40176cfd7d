from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from support.runs import run_spec

from aggregator_service.aggregation import registry
from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.plugin_checks import check_plugins
from aggregator_service.aggregation.registry import METHODS
from fedlora.adapters.spec import TaskType
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import PluginDefaults, Traits
from fedlora.plugins.clip import Clip
from fedlora.plugins.ditto import Ditto
from fedlora.plugins.fedlc import FedLC
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.scaffold import Mode
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.rounds import LateUpdates, RoundEngine
from fedlora.runs.training import OptimizerName


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosy(PluginDefaults):
    """Asks for whatever a test says."""

    asks: Traits = field(default_factory=Traits)

    name: ClassVar[str] = "choosy"

    @property
    def traits(self) -> Traits:
        return self.asks


def check(plugin, method: str = "fedit", spec=None) -> None:
    spec = spec or run_spec(method=method)
    check_plugins(compose(METHODS[method], plugins=(plugin,)), spec)


def test_what_asks_for_nothing_goes_with_everything():
    for method in METHODS:
        check(Choosy(), method)


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("ffa_lora", "freezes a factor"),
        ("rolora", "freezes a factor"),
        ("fedsa_lora", "keeps parts with the workers"),
        ("fed_sb", "freezes a factor"),
        ("hetlora", "lets workers choose components"),
        ("fedlora_optimizer", "trains again after the aggregation"),
    ],
)
def test_both_factors_are_wanted_where_one_is_frozen_kept_or_chosen_from(method, why):
    with pytest.raises(FedLoraError, match=f"plug-in fedprox .* method {method} {why}") as caught:
        check(FedProx(), method)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "fedit" in caught.value.hint
    assert "[plugins.fedprox]" in caught.value.hint


@pytest.mark.parametrize(
    "declared", [{"kept": ("k",)}, {"sent": ("s",)}, {"given": ("g",)}, {"personal": True}]
)
def test_what_keeps_or_sends_tensors_of_its_own_wants_both_factors(declared):
    with pytest.raises(FedLoraError, match=r"plug-in choosy .* ffa_lora freezes a factor"):
        check(Choosy(asks=Traits(**declared)), "ffa_lora")
    check(Choosy(asks=Traits(**declared)))


@pytest.mark.parametrize("method", ["fedit", "flora_na", "optimal", "flora"])
def test_methods_that_train_both_factors_take_fedprox(method):
    check(FedProx(), method)


@pytest.mark.parametrize("method", ["optimal", "flora", "flexlora"])
def test_what_remembers_factors_needs_a_method_that_keeps_the_basis(method):
    with pytest.raises(FedLoraError, match=f"plug-in ditto remembers .* {method} with"):
        check(Ditto(), method)
    check(Ditto(), "fedit")


def test_what_edits_updates_leaves_private_parts_alone():
    with pytest.raises(FedLoraError, match=r"plug-in clip changes .* fedsa_lora keeps parts"):
        check(Clip(), "fedsa_lora")
    check(Clip(), "ffa_lora")


def test_two_adapters_of_a_workers_own_are_refused_with_both_names():
    recipe = compose(METHODS["fedit"], plugins=(Choosy(asks=Traits(personal=True)), Ditto()))
    with pytest.raises(FedLoraError, match="plug-ins choosy and ditto make one each"):
        check_plugins(recipe, run_spec())


@pytest.mark.parametrize(
    "rules",
    [
        {"late_updates": LateUpdates.CARRY},
        {"engine": RoundEngine.BUFFERED, "buffer_size": 2},
        {"engine": RoundEngine.ASYNC, "quorum": 1},
    ],
)
def test_late_updates_are_refused_where_all_must_begin_from_one_version(rules):
    with pytest.raises(FedLoraError, match=r"plug-in choosy .* late_updates"):
        check(Choosy(asks=Traits(sync_only=True)), spec=run_spec(**rules))
    check(Choosy(), spec=run_spec(**rules))


def uniform_run(**changes):
    spec = run_spec()
    method = MethodSpec(name="fedit", weighting=RuleSpec(name="uniform"))
    return replace(spec, method=method, **changes)


def check_scaffold(spec, mode: Mode = Mode.DECOUPLED) -> None:
    plugins = (RuleSpec(name="scaffold", options={"mode": mode.value}),)
    recipe = registry.create_recipe(spec.method, plugins)
    check_plugins(recipe, replace(spec, plugins=plugins))


def test_formulas_of_sgd_are_refused_with_another_optimiser():
    adamw = uniform_run()
    check_scaffold(adamw)
    with pytest.raises(FedLoraError, match=r"plug-in scaffold .* is adamw") as caught:
        check_scaffold(adamw, Mode.EXACT)
    assert "decoupled" in caught.value.hint
    sgd = replace(adamw.training, optimizer=OptimizerName.SGD)
    check_scaffold(replace(adamw, training=sgd), Mode.EXACT)
    with pytest.raises(FedLoraError, match=r"momentum 0\.9"):
        check_scaffold(replace(adamw, training=replace(sgd, momentum=0.9)), Mode.EXACT)


def test_updates_that_must_weigh_the_same_need_the_uniform_weighting():
    with pytest.raises(FedLoraError, match=r"plug-in scaffold .* weighting is num_examples") as e:
        check_scaffold(run_spec())
    assert "uniform" in e.value.hint


def test_no_codec_writes_what_a_plug_in_sends():
    with pytest.raises(FedLoraError, match=r"plug-in scaffold sends dc .* codec int8"):
        check_scaffold(uniform_run(codec=CodecSpec(name=CodecName.INT8)))


def test_workers_that_send_extras_have_one_rank():
    plugins = (RuleSpec(name="scaffold"),)
    method = MethodSpec(name="flora_na", weighting=RuleSpec(name="uniform"))
    assert registry.create_recipe(method).takes_mixed_ranks
    assert not registry.create_recipe(method, plugins).takes_mixed_ranks


def test_a_language_model_has_no_classes():
    spec = run_spec()
    causal = replace(spec, adapter=replace(spec.adapter, task_type=TaskType.CAUSAL_LM))
    asks = Choosy(asks=Traits(needs_labels=True))
    check(asks, spec=spec)
    with pytest.raises(FedLoraError, match=r"is about classes, and model\.task is causal_lm"):
        check(asks, spec=causal)


def test_a_runs_recipe_has_its_plug_ins():
    spec = replace(run_spec(), plugins=(RuleSpec(name="fedprox", options={"mu": 2.0}),))
    assert registry.create_recipe(spec.method, spec.plugins).plugins == (FedProx(mu=2.0),)


def test_a_run_has_one_loss_of_its_targets():
    one, other = Choosy(asks=Traits(replaces_criterion=True)), FedLC()
    recipe = compose(METHODS["fedit"], plugins=(one, other))
    words = r"one loss of its targets, and the plug-ins choosy and fedlc make one each"
    with pytest.raises(FedLoraError, match=words) as caught:
        check_plugins(recipe, run_spec())
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert "[plugins.choosy], [plugins.fedlc]" in caught.value.hint
    check_plugins(compose(METHODS["fedit"], plugins=(one, FedLC(tau=0.0))), run_spec())


def test_a_step_has_one_way_to_its_gradients():
    one, other = (Choosy(asks=Traits(owns_step=True)) for _ in range(2))
    recipe = compose(METHODS["fedit"], plugins=(one, other))
    words = r"one way to its gradients, and the plug-ins choosy and choosy make one each"
    with pytest.raises(FedLoraError, match=words) as caught:
        check_plugins(recipe, run_spec())
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    check_plugins(compose(METHODS["fedit"], plugins=(one, FedProx(), FedLC())), run_spec())


def test_a_loss_of_its_own_goes_without_an_adjustment_of_cross_entropy():
    spec = run_spec()
    spec = replace(spec, training=replace(spec.training, logit_adjustment=1.0))
    with pytest.raises(FedLoraError, match=r"plug-in fedlc has a loss .*logit_adjustment = 1 is"):
        check(FedLC(), spec=spec)
    check(FedLC(tau=0.0), spec=spec)


def test_class_counts_are_nothing_that_a_language_model_has():
    spec = run_spec()
    spec = replace(spec, adapter=replace(spec.adapter, task_type=TaskType.CAUSAL_LM, labels=()))
    with pytest.raises(FedLoraError, match="plug-in fedlc is about classes"):
        check(FedLC(), spec=spec)
