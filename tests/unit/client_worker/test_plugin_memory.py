"""What plug-ins keep on a worker: durable, begun from once, and taken back where nobody read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.runs import LAYOUT, run_spec

from client_worker.loading import LoadedTrainer
from client_worker.plugin_memory import PluginMemory, own_adapter_of
from client_worker.private_parts import PrivateParts
from fedlora.adapters.extras import extra_manifest
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.method import RuleSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Limits, Registration, Task, TaskKind
from fedlora.tensors.manifest import DataType


class Scene:
    """A worker of a run with plug-ins, and its memory on a disk."""

    def __init__(self, folder: Path | None, *plugins: str) -> None:
        self.run = replace(run_spec(), plugins=tuple(RuleSpec(name=p) for p in plugins))
        self.shape = AdapterShape(layout=LAYOUT, kind=AdapterKind.LORA, rank=4, dtype=DataType.F32)

        class Trainer:
            rank = 4

        self.loaded = LoadedTrainer(
            trainer=Trainer(), assignment=(self.run, 4, None), shape=self.shape
        )
        self.registration = Registration(
            session_token="t", run_id="run-1", run=self.run, rank=4, limits=Limits()
        )
        sent = ("scaffold/dc",) if "scaffold" in plugins else ()
        self.plan = RoundPlan(sent_extras=sent)
        self.folder = folder
        self.restart()

    def restart(self) -> None:
        self.memory = PluginMemory(PrivateParts(self.folder))

    def task(self, round: int) -> Task:
        return Task(task_id=f"{round}", kind=TaskKind.TRAIN, round=round, plan=self.plan)

    def keep(self, round: int, name: str, value: float) -> None:
        manifest = extra_manifest(self.shape.manifest(self.shape.parts), [name])
        tensors = {info.name: torch.full(info.shape, value) for info in manifest.tensors}
        self.memory.keep(self.task(round), self.registration, tensors)

    def before(self, round: int) -> set[float]:
        found = self.memory.before(self.task(round), self.loaded, self.registration)
        return {float(t.flatten()[0]) for t in found.values()}

    def unread(self, made_for: int, in_hand: int) -> None:
        self.memory.unread(str(made_for), self.task(in_hand), self.loaded, self.registration)


KEPT = pytest.mark.parametrize(
    ("plugin", "name"), [("scaffold", "scaffold/c_u"), ("ditto", "ditto/own")]
)


@KEPT
def test_the_next_round_begins_from_what_was_kept_also_after_a_restart(
    tmp_path: Path, plugin: str, name: str
):
    scene = Scene(tmp_path, plugin)
    assert scene.before(1) == set()
    scene.keep(1, name, 1.0)
    scene.restart()
    assert scene.before(2) == {1.0}


@KEPT
def test_a_task_that_is_given_again_begins_where_it_began_the_first_time(
    tmp_path: Path, plugin: str, name: str
):
    scene = Scene(tmp_path, plugin)
    scene.keep(1, name, 1.0)
    scene.keep(2, name, 2.0)
    scene.restart()
    assert scene.before(2) == {1.0}
    assert scene.before(3) == {2.0}


def test_what_came_of_an_update_that_nobody_read_is_forgotten_where_the_server_counts_it(
    tmp_path: Path,
):
    scene = Scene(tmp_path, "scaffold")
    scene.keep(1, "scaffold/c_u", 1.0)
    scene.keep(2, "scaffold/c_u", 2.0)
    scene.unread(2, in_hand=3)
    scene.restart()
    assert scene.before(3) == {1.0}


def test_a_workers_own_adapter_is_no_business_of_the_servers(tmp_path: Path):
    scene = Scene(tmp_path, "ditto")
    scene.keep(1, "ditto/own", 1.0)
    scene.unread(1, in_hand=2)
    assert scene.before(2) == {1.0}


def test_without_plug_ins_that_keep_anything_nothing_is_looked_for(tmp_path: Path):
    scene = Scene(tmp_path / "none", "fedprox")
    assert scene.before(1) == set()
    scene.memory.keep(scene.task(1), scene.registration, {})
    assert not (tmp_path / "none").exists()


def test_a_runs_own_adapter_has_its_plug_ins_name():
    spec: RunSpec = run_spec()
    assert own_adapter_of(spec) == ""
    assert own_adapter_of(Scene(None, "ditto", "fedprox").run) == "ditto/own"
