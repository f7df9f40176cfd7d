"""Whole federations with plug-ins: real workers on tiny models, over gRPC."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.federation import serving
from support.planned_worker import Payload, Recording
from support.worker_federation import federate, run_of, same
from support.worker_harness import worker
from support.worker_runs import classifier_spec
from torch import Tensor

from aggregator_service.transport import server
from fedlora.exit_codes import ExitCode
from fedlora.runs.method import RuleSpec
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import OptimizerName


def run_with(bert: Path, *plugins: RuleSpec, method: str = "fedit", **training) -> RunSpec:
    return replace(run_of(classifier_spec(bert), method, **training), plugins=plugins)


def rule(name: str, **options) -> RuleSpec:
    return RuleSpec(name=name, options=options)


@pytest.fixture(scope="module")
def empty(bert: Path, tmp_path_factory: pytest.TempPathFactory):
    """The versions of the same run without plug-ins, and what crossed the wire for them."""
    recording = Recording()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "FederationServicer", recording.servicer())
        done = asyncio.run(federate(tmp_path_factory.mktemp("plain"), run_with(bert)))
    return done.versions, recording


@pytest.fixture(scope="module")
def plain(empty):
    """The versions alone."""
    return empty[0]


def fedavg(updates: list[Payload]) -> dict[str, Tensor]:
    """sum_u (n_u / n) theta_u of what was sent, in the order of the workers' names.

    In float64, and rounded to float32 once.
    """
    sent = sorted(updates, key=lambda u: u.header.task_id.rsplit("/", 1)[-1])
    total = sum(u.header.num_examples for u in sent)
    means = {}
    for name in sent[0].tensors:
        mean = torch.zeros_like(sent[0].tensors[name], dtype=torch.float64)
        for update in sent:
            weight = update.header.num_examples / total
            mean = mean + weight * update.tensors[name].double()
        means[name] = mean.float()
    return means


def test_without_plug_ins_a_version_is_the_weighted_mean_of_the_bytes_that_were_sent(empty):
    versions, recording = empty
    begun, *updates = recording.up
    assert same(begun.tensors, versions[0])
    assert {u.header.num_examples for u in updates} == {11, 16}
    for round, version in enumerate(versions[1:], start=1):
        sent = [u for u in updates if u.header.round == round]
        assert len(sent) == 2
        assert same(fedavg(sent), version)


@pytest.mark.parametrize(
    "plugin",
    [
        rule("fedprox", mu=0.0),
        rule("fedlc", tau=0.0),
        rule("fednova", max_ratio=1.0),
        rule("clip", max_norm=0.0),
        rule("norm_bound", max_ratio=0.0),
        rule("norm_bound", max_ratio=1e6),
    ],
    ids=lambda p: f"{p.name} {p.options}",
)
async def test_a_neutral_setting_is_fedavg_bit_for_bit(
    tmp_path: Path, bert: Path, plain, plugin: RuleSpec
):
    done = await federate(tmp_path, run_with(bert, plugin))
    assert len(done.versions) == 3
    assert all(same(a, b) for a, b in zip(plain, done.versions, strict=True))


async def test_fedlc_trains_by_other_losses_and_sends_nothing_more(
    tmp_path: Path, bert: Path, plain, recording: Recording
):
    done = await federate(tmp_path, run_with(bert, rule("fedlc", tau=2.0)))
    assert same(plain[0], done.versions[0])
    assert not same(plain[1], done.versions[1])
    assert all(t.isfinite().all() for version in done.versions for t in version.values())
    _, *updates = recording.up
    assert len(updates) == 4
    assert all(update.tensors.keys() == plain[0].keys() for update in updates)


async def test_no_update_that_is_clipped_goes_farther_than_the_bound(
    tmp_path: Path, bert: Path, recording: Recording
):
    done = await federate(tmp_path, run_with(bert, rule("clip", max_norm=0.01)))
    _, *updates = recording.up
    for update in updates:
        given = done.versions[update.header.base_version]
        squares = [float((t - given[n]).double().square().sum()) for n, t in update.tensors.items()]
        # The bound is met, but for the rounding of each number to float32.
        assert sum(squares) ** 0.5 == pytest.approx(0.01, rel=1e-3)


async def test_fednova_moves_by_what_the_updates_did_in_one_step(
    tmp_path: Path, bert: Path, recording: Recording
):
    spec = run_with(bert, rule("fednova"), optimizer=OptimizerName.SGD, momentum=0.5)
    done = await federate(tmp_path, spec)
    _, *updates = recording.up
    for round in (1, 2):
        members = [u for u in updates if u.header.round == round]
        # 17 and 23 rows make rounds of unequal length.
        lengths = [u.header.metrics["fednova_a"] for u in members]
        assert lengths[0] != lengths[1]
        examples = [u.header.num_examples for u in members]
        weights = [n / sum(examples) for n in examples]
        effective = sum(w * a for w, a in zip(weights, lengths, strict=True))
        before, after = done.versions[round - 1], done.versions[round]
        for name, given in before.items():
            steps = [
                w / a * (u.tensors[name].double() - given.double())
                for w, a, u in zip(weights, lengths, members, strict=True)
            ]
            expected = given.double() + effective * sum(steps)
            # One rounding to float32, when the version is written.
            assert torch.allclose(after[name].double(), expected, rtol=2**-23, atol=1e-12)


async def test_fednova_with_equal_lengths_is_fedavg_bit_for_bit(tmp_path: Path, bert: Path):
    runs = [run_with(bert, *plugins, local_steps=3) for plugins in ((), (rule("fednova"),))]
    plain, nova = [await federate(tmp_path / str(i), run) for i, run in enumerate(runs)]
    assert all(same(a, b) for a, b in zip(plain.versions, nova.versions, strict=True))


@pytest.mark.parametrize("lam", [0.0, 2.0])
async def test_ditto_leaves_the_global_adapters_alone_and_scores_the_workers_own(
    tmp_path: Path, bert: Path, plain, recording: Recording, lam: float
):
    done = await federate(tmp_path, run_with(bert, rule("ditto", lam=lam)))
    assert all(same(a, b) for a, b in zip(plain, done.versions, strict=True))
    for name, models in done.lived.items():
        # At each round: the update, the published version, and the worker's own adapter.
        own = models[2::3]
        assert len(own) == 2
        assert not same(own[0], own[1])
        assert not any(same(own[0], version) for version in done.versions), name
        crossed = [t for p in (*recording.up, *recording.down) for t in p.tensors.values()]
        assert not any(torch.equal(t, c) for t in own[0].values() for c in crossed)
    assert not same(done.lived["w-0"][2], done.lived["w-1"][2])


@pytest.mark.parametrize("space", ["factors", "product"])
async def test_fedprox_holds_every_round_nearer_to_the_one_before(
    tmp_path: Path, bert: Path, plain, space: str
):
    plugin = rule("fedprox", mu=100.0, space=space)
    done = await federate(tmp_path, run_with(bert, plugin))
    head = "base_model.model.classifier.weight"

    def moved(versions) -> float:
        return float((versions[1][head] - versions[0][head]).norm())

    assert 0 < moved(done.versions) < 0.5 * moved(plain)


async def test_a_worker_that_lacks_a_plug_in_is_refused_with_its_name(tmp_path: Path, bert: Path):
    spec = run_with(bert, rule("fedprox", mu=1.0))
    async with serving(tmp_path, spec) as served:
        with worker(served.address, tmp_path / "w", plugins=()) as old:
            assert await asyncio.to_thread(old.runner.run) is ExitCode.REFUSED
