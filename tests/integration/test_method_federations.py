"""Every method in a real federation: what crosses the wire, and that the certificate is right."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
import torch
from support.builders import METRICS
from support.federation import reason_of, serving
from support.method_federation import check, joined, spec_of, versions_of
from support.runs import LAYOUT
from torch import Tensor

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.gauge import NEAREST
from aggregator_service.aggregation.registry import (
    COMPRESSIONS,
    METHODS,
    SERVER_OPTIMIZERS,
    WEIGHTINGS,
    create_recipe,
)
from aggregator_service.aggregation.traffic import traffic_of
from fedlora.adapters.names import Factor, Part, lora_key, parse_key
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.method import Gauge, MethodSpec, RuleSpec
from fedlora.runs.plan import RoundPlan, plan_for
from fedlora.runs.spec import RunSpec
from fedlora.tensors.manifest import DataType
from fedlora.wire.convert import from_message


@pytest.mark.parametrize("name", sorted(METHODS))
async def test_every_method_in_a_federation(name, tmp_path, monkeypatch):
    # At rank 2 it takes some rounds until a stack of changes is as large as a layer.
    rank = 2 if compose(METHODS[name]).properties.changes_base else 4
    await check(tmp_path, monkeypatch, spec_of(name, rank=rank))


@pytest.mark.parametrize(
    ("name", "options"),
    [("fedlora_optimizer", {"global_stage": "federated"}), ("rac_lora", {"trained": "a"})],
)
async def test_an_option_that_changes_the_traffic_is_told(name, options, tmp_path, monkeypatch):
    method = MethodSpec(name=name, options=options)
    plain, chosen = traffic_of(METHODS[name]), traffic_of(create_recipe(method).method)
    assert plain.up != chosen.up
    done = await check(tmp_path, monkeypatch, replace(spec_of(name), method=method))
    assert len({p.header.round for p in done.recording.up}) > len(chosen.up)


MIXED = sorted(n for n, m in METHODS.items() if compose(m).properties.mixed_ranks)


@pytest.mark.parametrize("ranks", [(0, 3, 2), (3, 0, 2)])
@pytest.mark.parametrize("name", MIXED)
async def test_every_method_for_mixed_ranks_takes_them(name, ranks, tmp_path, monkeypatch):
    # The first worker makes version 0, at its own rank.
    await check(tmp_path, monkeypatch, spec_of(name), ranks=ranks)


REFINED = sorted(n for n, m in METHODS.items() if any(plan.refined for plan in compose(m).plans()))


@pytest.mark.parametrize("name", REFINED)
async def test_a_stage_on_the_servers_data_changes_only_what_it_may(name, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, spec_of(name), refiner=True)
    for report in done.reports:
        combined, refined = versions_of(done, report)
        parts = plan_for(done.plans, report.round).refined
        for key, tensor in done.versions[combined].items():
            part = parse_key(key).part
            if part is not None:
                assert torch.equal(tensor, done.versions[refined][key]) == (part not in parts)


KINDS = sorted(
    (n, kind)
    for n, m in METHODS.items()
    for kind in compose(m).properties.kinds - {AdapterKind.LORA}
)


@pytest.mark.parametrize(("name", "kind"), KINDS)
async def test_every_family_a_method_takes_goes_through_it(name, kind, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, spec_of(name, kind))
    keys = set(done.final)
    suffix = {"dora": ".lora_magnitude_vector", "hira": ".hira_A"}[kind.value]
    assert sum(k.endswith(suffix) for k in keys) == len(LAYOUT.modules)


def with_rule(method: str, **rules: str) -> RunSpec:
    chosen = {key: RuleSpec(name=value) for key, value in rules.items()}
    return replace(spec_of(method), method=MethodSpec(name=method, **chosen))


@pytest.mark.parametrize("rule", sorted(WEIGHTINGS))
async def test_every_weighting_rule_in_a_federation(rule, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, with_rule("fedit", weighting=rule))
    examples = {"w-0": 10, "w-1": 20, "w-2": 30}
    by_data = {name: n / 60 for name, n in examples.items()}
    found = {u.worker: u.weight for u in done.reports[-1].updates}
    assert all(weight >= 0 for weight in found.values())
    if rule in ("num_examples", "loss_reduction", "tilted", "bound_gap", "rank_aware"):
        # The scripted workers have one rank, and send one value of every metric.
        assert found == pytest.approx(by_data)
    else:
        assert found != pytest.approx(by_data, rel=1e-3)


@pytest.mark.parametrize("rule", sorted(SERVER_OPTIMIZERS))
async def test_every_server_optimiser_in_a_federation(rule, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, with_rule("fedit", server_optimizer=rule))
    optimizer = SERVER_OPTIMIZERS[rule]
    memory: dict[str, dict[str, Tensor]] = {}
    for report in done.reports:
        updates = done.updates(report.round)
        before, after = done.versions[report.round - 1], done.versions[report.round]
        for key, tensor in before.items():
            mean = sum(u.weight * updates[u.worker][key].double() for u in report.updates)
            # The scale is in B while it moves: adaptive steps are not linear in it.
            scale = 1.0
            if parse_key(key).part is Part.B:
                scale = done.spec.adapter.scaling(done.spec.adapter.r)
            moved, kept = optimizer.step(scale * tensor.double(), scale * mean, memory.get(key, {}))
            memory[key] = dict(kept)
            expected = moved / scale
            torch.testing.assert_close(after[key].double(), expected, rtol=1e-5, atol=1e-6)
            assert not torch.equal(after[key].double(), mean) or rule == "fedavgm"


@pytest.mark.parametrize("rule", sorted(COMPRESSIONS))
async def test_every_compression_rule_in_a_federation(rule, tmp_path, monkeypatch):
    done = await check(tmp_path, monkeypatch, with_rule("fedit", compression=rule))
    changes_base = create_recipe(done.spec.method).properties.changes_base
    based = any(parse_key(k).part is Part.BASE_A for k in done.versions[-1])
    assert based == changes_base


@pytest.mark.parametrize("gauge", [g for g in Gauge if g is not Gauge.OWN])
async def test_every_gauge_in_a_federation(gauge, tmp_path, monkeypatch):
    spec = replace(spec_of("fedit"), method=MethodSpec(name="fedit", gauge=gauge))
    done = await check(tmp_path, monkeypatch, spec)
    assert all(plan.keeps_basis == (gauge in NEAREST) for plan in done.plans)
    last = done.reports[-1]
    shares = {u.worker: u.weight for u in last.updates}
    sent = [(shares[worker], t) for worker, t in done.updates(last.round).items()]
    for module in LAYOUT.modules:
        a, b = (lora_key(module.path, factor) for factor in (Factor.LORA_A, Factor.LORA_B))
        mean_a, mean_b = (sum(w * tensors[key].double() for w, tensors in sent) for key in (a, b))
        found = done.final[b].double() @ done.final[a].double()
        torch.testing.assert_close(found, mean_b @ mean_a, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(done.final[a].double(), mean_a, rtol=1e-3)


async def test_a_mask_that_does_not_fit_is_refused_at_the_door(tmp_path, monkeypatch):
    spec = spec_of("lora_a2")
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        workers = await joined(served, (0, 0, 0), refiner=False)
        first = workers["w-0"]
        manifest = LAYOUT.manifest(first.rank, DataType.F32, parts=(Part.A, Part.B))
        await first.initialize(await first.task(), {t.name: t.shape for t in manifest.tensors})
        task = await first.task()
        await first.bring(task.adapter_version)
        tensors = first.train(from_message(task.plan, RoundPlan))
        masks = [key for key in tensors if parse_key(key).part is Part.SELECTED]
        for bad in (torch.ones(first.rank), torch.full((first.rank,), 0.5)):
            wrong = tensors | {masks[0]: bad}
            if torch.equal(bad, tensors[masks[0]]):
                continue
            with pytest.raises(grpc.RpcError) as caught:
                await first.push(task, wrong, metrics=METRICS)
            assert reason_of(caught.value) == "INVALID_PAYLOAD"
            assert "w-0" in caught.value.details()
            assert "mask" in caught.value.details()
        # Nothing of it is left, and the honest update is taken.
        assert not served.aggregator.coordinator.run("test").state.updates
        await first.push(task, tensors, metrics=METRICS)
        assert set(served.aggregator.coordinator.run("test").state.updates) == {"w-0"}
