"""What the server computes while it waits for updates, and that it changes no bit of the result."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from support.federation import random_adapter, serving
from support.runs import LAYOUT, run_spec

from aggregator_service.engine import AggregationEngine
from aggregator_service.run_actor import RunActor
from fedlora.adapters.spec import AdaptedModule

WIDE = replace(
    LAYOUT,
    modules=tuple(
        AdaptedModule(path=f"encoder.{i}.query", in_features=80, out_features=64) for i in range(3)
    ),
)


async def first_round(tmp_path, method, expected, **rules):
    """The adapter after a round of three, and how many modules were ready before the close.

    The last update comes once `expected` are.
    """
    spec = run_spec(method=method, num_workers=3, num_rounds=2, **rules)
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        workers = [await served.worker(f"w-{i}", layout=WIDE) for i in range(3)]
        task = await workers[0].task()
        await workers[0].push(task, random_adapter(4, seed=0, layout=WIDE), num_examples=0)
        actor = served.aggregator.coordinator.run("test")
        engine = served.aggregator.coordinator._engine
        ready = 0
        for i, worker in enumerate(workers):
            while i == 2:
                # The engine has one thread for this: what comes after has waited for it.
                await engine._run(engine._aggregator, lambda: None)
                _, grams = engine._grams.get(actor.state.run_id, (0, None))
                held = {} if grams is None else grams._blocks
                ready = sum(("w-0", "w-1") in held.get(m.path, {}) for m in WIDE.modules)
                if ready >= expected:
                    break
            task = await worker.task()
            await worker.push(task, random_adapter(4, seed=10 + i, layout=WIDE), num_examples=5 + i)
        while actor.state.version != 1:
            await actor.wait_for_change(None)
        assert actor.state.run_id not in engine._grams
        record = await served.aggregator.coordinator.adapter(actor, 1)
    return record.digest, ready


@pytest.mark.parametrize(("method", "expected"), [("optimal", 3), ("flora_na", 3), ("fedit", 0)])
async def test_the_adapter_is_the_same_to_the_bit_with_and_without(
    method, expected, tmp_path, monkeypatch
):
    ahead, ready = await first_round(tmp_path / "ahead", method, expected)
    assert ready == expected
    monkeypatch.setattr(AggregationEngine, "prepare", lambda self, state: None)
    at_the_close, ready = await first_round(tmp_path / "late", method, 0)
    assert ready == 0
    assert ahead == at_the_close


async def test_no_blocks_are_kept_for_a_certificate_that_does_not_come(tmp_path, monkeypatch):
    kept = []
    published = RunActor.apply_if_possible

    async def noted(self, event):
        kept.append(dict(self._engine._closed_grams))
        await published(self, event)

    monkeypatch.setattr(RunActor, "apply_if_possible", noted)
    for certify_every in (1, 0):
        kept.clear()
        await first_round(tmp_path / str(certify_every), "optimal", 3, certify_every=certify_every)
        assert any(kept) == bool(certify_every)


async def test_a_run_that_is_stopped_leaves_no_blocks_behind(tmp_path):
    spec = run_spec(method="optimal", num_workers=3)
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        workers = [await served.worker(f"w-{i}", layout=WIDE) for i in range(3)]
        task = await workers[0].task()
        await workers[0].push(task, random_adapter(4, seed=0, layout=WIDE), num_examples=0)
        coordinator = served.aggregator.coordinator
        engine, run_id = coordinator._engine, coordinator.run("test").state.run_id
        task = await workers[0].task()
        await workers[0].push(task, random_adapter(4, seed=1, layout=WIDE), num_examples=5)
        while run_id not in engine._grams:
            await engine._run(engine._aggregator, lambda: None)
        await coordinator.stop_run("test", "enough")
        await engine._run(engine._aggregator, lambda: None)
        assert not engine._grams
