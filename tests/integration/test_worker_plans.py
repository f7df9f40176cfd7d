"""The real worker in runs whose plans freeze, keep and alternate: what it sends, and what it gets.

A recording servicer notes every tensor that crosses the wire.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from support.federation import serving
from support.planned_worker import Recording
from support.runs import run_spec
from support.tiny_trainer import TinyTrainer
from support.worker_federation import federate, of_part, parts_in, run_of, same, stored
from support.worker_harness import worker
from support.worker_runs import classifier_spec
from torch import Tensor

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.registry import METHODS
from client_worker.training.features import FEATURES
from fedlora.adapters.names import Part, parse_key
from fedlora.exit_codes import ExitCode
from fedlora.runs.plan import Selection, WorkerFeature, plan_for
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Registration

# --- PEFT models -------------------------------------------------------------------------


def asked(method: str) -> frozenset[WorkerFeature]:
    plans = compose(METHODS[method]).plans()
    return frozenset[WorkerFeature]().union(*(plan.features for plan in plans))


FOLLOWED = sorted(name for name in METHODS if asked(name) and asked(name) <= FEATURES)
"""methods that ask for more than training A and B, and for no more than the worker says it can"""


def test_the_methods_are_those_meant():
    assert {"ffa_lora", "fedsa_lora", "rolora", "lorar", "bound_weights"} <= {*FOLLOWED}


@pytest.mark.parametrize("method", FOLLOWED)
async def test_nothing_frozen_or_private_is_ever_sent(
    tmp_path: Path, bert: Path, recording: Recording, method: str
):
    done = await federate(tmp_path, run_of(classifier_spec(bert), method))
    first, *updates = recording.up
    whole = parts_in(first.tensors)
    assert {Part.A, Part.B, None} <= whole
    assert len(updates) == 4
    for update in updates:
        plan = plan_for(done.plans, update.header.round)
        mask = set() if plan.selection is Selection.ALL else {Part.SELECTED}
        assert parts_in(update.tensors) == {*plan.trained, *mask, None}
        assert {*plan.required_metrics} <= update.header.metrics.keys()
        # What was sent is what was trained, and it has moved.
        given = done.versions[update.header.base_version]
        moved = {n: t for n, t in update.tensors.items() if parse_key(n).part is not Part.SELECTED}
        assert all(not torch.equal(t, given[name]) for name, t in moved.items())
    for round in (1, 2):
        before, after = done.versions[round - 1 : round + 1]
        for part in {Part.A, Part.B} - {*plan_for(done.plans, round).published}:
            assert same(of_part(before, part), of_part(after, part))
    # Every worker asked for a whole adapter once, and then for what it lacked: there is no stage on
    # the server's data here, and what only such a stage moves stays.
    for payload in recording.down:
        moved = {*plan_for(done.plans, payload.header.round).published, None}
        assert parts_in(payload.tensors) == (whole if payload.held_version is None else moved)
    assert [p.held_version for p in recording.down].count(None) == 2


async def test_private_parts_are_the_workers_own_and_cross_the_wire_in_neither_direction(
    tmp_path: Path, bert: Path, recording: Recording
):
    done = await federate(tmp_path, run_of(classifier_spec(bert), "fedsa_lora"))
    crossed = [t for p in (*recording.up, *recording.down) for t in p.tensors.values()]
    own = {
        name: [of_part(model, Part.B) for model in models] for name, models in done.lived.items()
    }
    for models in own.values():
        after_1, published_1, after_2, published_2 = models
        # The published adapter is scored with the worker's own B, which goes on from round 1.
        assert same(after_1, published_1)
        assert same(after_2, published_2)
        assert not same(after_1, after_2)
        for tensor in (*after_1.values(), *after_2.values()):
            assert not any(torch.equal(tensor, t) for t in crossed)
    assert not same(own["w-0"][-1], own["w-1"][-1])


# --- a worker that comes back ------------------------------------------------------------


class Noting(TinyTrainer):
    """Keeps what it was given."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.given: list[dict[str, Tensor]] = []

    def load_adapter(self, tensors: Any, private: Any = None) -> None:
        super().load_adapter(tensors, private)
        self.given.append(self.adapter())


# RoLoRA moves B in odd rounds and A in even ones; RAC-LoRA adds every round to the base model.
@pytest.mark.parametrize("method", ["rolora", "rac_lora"])
async def test_a_worker_that_missed_rounds_gets_all_that_moved_meanwhile(
    tmp_path: Path, recording: Recording, method: str
):
    spec: RunSpec = run_spec(
        method=method,
        num_rounds=9,
        num_workers=3,
        quorum=2,
        deadline_seconds=0.5,
        evaluate=False,
    )
    back, late = threading.Event(), []

    def sleep(step: int) -> None:
        if not late:
            late.append(step)
            assert back.wait(60)

    def create(registration: Registration) -> Noting:
        return trainers.setdefault(registration.session_token, Noting(registration, on_step=sleep))

    trainers: dict[str, Noting] = {}
    async with (
        asyncio.timeout(120),
        serving(tmp_path, spec, heartbeat_interval_seconds=0.1) as served,
    ):
        actor = served.aggregator.coordinator.run("test")
        with ExitStack() as stack:
            workers = [
                stack.enter_context(
                    worker(
                        served.address,
                        tmp_path / name,
                        name=name,
                        create=create if name == "late" else None,
                    )
                )
                for name in ("late", "w-0", "w-1")
            ]
            threads = [asyncio.create_task(asyncio.to_thread(w.runner.run)) for w in workers]
            while (actor.state.version or 0) < 3:
                await actor.wait_for_change(None)
            back.set()
            assert await asyncio.gather(*threads) == [ExitCode.OK] * 3
        versions = [await stored(served, version) for version in range(10)]
    (trainer,) = trainers.values()
    # What it trains from is a version of the server's, whole and no mixture of two.
    begun = [
        next(v for v, whole in enumerate(versions) if same(given, whole)) for given in trainer.given
    ]
    assert begun == sorted(begun)
    assert begun[0] == 0
    assert begun[1] >= 3
    plans = compose(METHODS[method]).plans()
    caught_up = [p for p in recording.down if p.held_version == 0]
    assert max(p.header.adapter_version for p in caught_up) == begun[1]
    for payload in recording.down:
        if payload.held_version is not None:
            missed = range(payload.held_version + 1, payload.header.adapter_version + 1)
            moved = {part for r in missed for part in plan_for(plans, r).published}
            assert parts_in(payload.tensors) == moved
