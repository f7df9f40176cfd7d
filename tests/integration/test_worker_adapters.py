"""Real workers from the attached adapter to the exported one, which plain peft loads and serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.worker_federation import Finished, federate, of_part, run_of, same
from support.worker_runs import classifier_spec
from torch import Tensor, nn

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.registry import METHODS
from client_worker.adaptation.base_model import load_base
from client_worker.adaptation.fingerprint import fingerprint
from client_worker.training.features import FEATURES
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind, AdapterSpec, Quantization

IDS = torch.tensor([[2, 7, 9, 3, 11, 8], [2, 14, 6, 21, 5, 3]])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.eval()(input_ids=IDS).logits
    return found


def served(done: Finished) -> Tensor:
    """What plain peft makes of the exported adapter."""
    base = load_base(done.spec.adapter, seed=done.spec.seed)
    before = logits(base.model)
    after = logits(PeftModel.from_pretrained(base.model, done.final))
    assert (after - before).abs().max() > 1e-3
    return after


def check_served(done: Finished) -> None:
    """The workers' last scores were those of the model that is exported."""
    expected = served(done)
    for trainer in done.trainers.values():
        torch.testing.assert_close(logits(trainer.module), expected, rtol=1e-4, atol=1e-5)


def kinds_of(name: str) -> frozenset[AdapterKind]:
    return compose(METHODS[name]).properties.kinds


MERGING = sorted(
    name
    for name, method in METHODS.items()
    if any(plan.changes_base for plan in compose(method).plans())
    and frozenset().union(*(p.features for p in compose(method).plans())) <= FEATURES
)


def test_the_methods_are_those_meant():
    assert {"flora", "fedex_lora", "rac_lora", "frlora", "fed_talora"} <= {*MERGING}


@pytest.mark.parametrize("method", MERGING)
async def test_a_changed_base_counts_once_and_the_weights_stay_as_they_were(
    tmp_path: Path, bert: Path, method: str
):
    done = await federate(tmp_path, run_of(classifier_spec(bert), method, num_rounds=3))
    assert of_part(done.versions[-1], Part.BASE_A)
    check_served(done)
    spec = done.spec.adapter
    expected = load_base(spec, seed=done.spec.seed).fingerprint
    for trainer in done.trainers.values():
        plain = trainer.module.unload().state_dict()
        assert fingerprint(plain, trained=spec.modules_to_save) == expected


ADAPTERS = {
    "lora": {},
    "rslora": {"use_rslora": True, "lora_alpha": 6.0},
    "dora": {"kind": AdapterKind.DORA},
    "hira": {"kind": AdapterKind.HIRA},
    "rsdora": {"kind": AdapterKind.DORA, "use_rslora": True},
    "attention": {"target_modules": ("query", "key", "value")},
    "expression": {"target_modules": (r".*\.layer\.1\..*dense",)},
    "everything": {"target_modules": ("all-linear",), "modules_to_save": ("classifier",)},
}


@pytest.mark.parametrize("changes", ADAPTERS.values(), ids=ADAPTERS)
async def test_every_kind_of_adapter_is_trained_combined_and_served(
    tmp_path: Path, bert: Path, changes: dict[str, object]
):
    spec: AdapterSpec = replace(classifier_spec(bert), **changes)
    done = await federate(tmp_path, run_of(spec, "flora_na"))
    check_served(done)
    first, last = done.versions[0], done.versions[-1]
    parts = {Part.A, Part.B} | ({Part.MAGNITUDE} if spec.kind is AdapterKind.DORA else set())
    for part in parts:
        held = of_part(first, part)
        assert held
        assert all(not torch.equal(t, last[name]) for name, t in held.items())


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        (AdapterKind.LORA, "flora_na"),
        (AdapterKind.DORA, "flora_na"),
        (AdapterKind.HIRA, "flora_na"),
        (AdapterKind.LORA, "fedex_lora"),
        (AdapterKind.LORA, "fed_sb"),
    ],
)
async def test_adapters_above_a_base_in_4_bits_are_trained_combined_and_served(
    tmp_path: Path, bert: Path, kind: AdapterKind, method: str
):
    spec = classifier_spec(bert, kind=kind)
    small = replace(spec.base_model, quantization=Quantization.NF4)
    done = await federate(tmp_path, run_of(replace(spec, base_model=small), method))
    check_served(done)
    for trainer in done.trainers.values():
        weights = dict(trainer.module.named_parameters())
        assert {t.dtype for name, t in weights.items() if "query.base_layer.w" in name} == {
            torch.uint8
        }


FAMILIES = sorted(
    (name, kind)
    for name in METHODS
    for kind in kinds_of(name) - {AdapterKind.LORA}
    if frozenset().union(*(p.features for p in compose(METHODS[name]).plans(kind))) <= FEATURES
)


@pytest.mark.parametrize(("method", "kind"), FAMILIES)
async def test_every_family_goes_through_every_method_that_takes_it(
    tmp_path: Path, bert: Path, method: str, kind: AdapterKind
):
    done = await federate(tmp_path, run_of(classifier_spec(bert, kind=kind), method))
    if not any(plan.private or plan.personal_stage for plan in done.plans):
        check_served(done)
    assert not same(done.versions[0], done.versions[-1])


@pytest.mark.parametrize("method", ["fed_sb", "lora_a2", "aflora"])
async def test_cores_and_chosen_components_end_as_an_adapter_that_peft_serves(
    tmp_path: Path, bert: Path, method: str
):
    done = await federate(tmp_path, run_of(classifier_spec(bert), method, num_rounds=3))
    check_served(done)


async def test_workers_prune_their_rank_and_are_sent_what_is_left(tmp_path: Path, bert: Path):
    options = {"tail_fraction": 0.75, "tail_penalty": 10.0, "min_rank": 2}
    spec = run_of(classifier_spec(bert), "hetlora", num_rounds=4, options=options)
    done = await federate(tmp_path, spec, max_ranks={"w-1": 3})
    assert {name: trainer.rank for name, trainer in done.trainers.items()} == {"w-0": 2, "w-1": 2}
    assert of_rank(done.versions[-1]) == {4}


@pytest.mark.parametrize(
    "method", ["flora", "fedhl", "hetlora", "aflora", "flora_na", "replication"]
)
async def test_a_workers_own_limit_is_its_rank(tmp_path: Path, bert: Path, method: str):
    options = {"min_rank": 4} if method == "hetlora" else None
    spec = run_of(classifier_spec(bert), method, options=options)
    done = await federate(tmp_path, spec, max_ranks={"w-1": 2})
    assert {name: trainer.rank for name, trainer in done.trainers.items()} == {"w-0": 4, "w-1": 2}
    torch.testing.assert_close(logits(done.trainers["w-0"].module), served(done))


def of_rank(version: dict[str, Tensor]) -> set[int]:
    return {len(tensor) for tensor in of_part(version, Part.A).values()}
