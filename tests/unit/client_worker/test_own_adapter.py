"""When a worker writes down the adapter that is its own, and what it then holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from support.fake_federation import FakeFederation, evaluate_task, run_spec, train_task
from support.tiny_trainer import LAYOUT, adapter, adapter_file
from support.worker_harness import worker
from torch import Tensor

from client_worker.own_adapter import OwnAdapter
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.own_note import note_in
from fedlora.runs.plan import RoundPlan
from fedlora.runs.tasks import Task
from fedlora.tensors.manifest import DataType
from fedlora.tensors.safetensors_io import decode

VERSIONS = {v: adapter_file(seed=10 + v) for v in range(3)}
MANIFEST = LAYOUT.manifest(4, DataType.F32)


def lived(tmp_path: Path, *tasks: Task) -> tuple[dict[str, object], dict[str, Tensor]]:
    """The note and the tensors that a worker has kept once it has done these tasks."""
    cache_dir = tmp_path / "cache"
    with (
        FakeFederation(tasks, adapters=VERSIONS) as server,
        worker(server.address, tmp_path, cache_dir=cache_dir) as w,
    ):
        assert w.runner.run() == 0
    path = cache_dir / "workers" / "w" / "own" / "test.safetensors"
    return json.loads(note_in(path)), load_file(path)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(t, expected[name]) for name, t in found.items()
    )


def trained_from(version: int, seed: int) -> dict[str, Tensor]:
    noise = adapter(seed=seed)
    return {n: t + noise[n] for n, t in decode(VERSIONS[version][0], MANIFEST).items()}


def test_it_is_what_came_of_the_last_round_and_not_the_published_version(tmp_path: Path):
    tasks = [train_task(1), evaluate_task(1), train_task(2, version=1), evaluate_task(2, version=2)]
    note, tensors = lived(tmp_path, *tasks)
    assert (note["run"], note["worker"]) == ("test", "w")
    assert (note["round"], note["adapter_version"], note["is_trained"]) == (2, 1, True)
    assert same(tensors, trained_from(1, seed=102))


def test_with_private_parts_it_is_the_published_version_with_these(tmp_path: Path):
    plan = RoundPlan(trained=(Part.A,), private=(Part.B,), published=(Part.A,))
    tasks = [replace(t, plan=plan) for t in (train_task(1), evaluate_task(1))]
    note, tensors = lived(tmp_path, *tasks)
    assert (note["round"], note["adapter_version"], note["is_trained"]) == (1, 1, False)
    published, own = decode(VERSIONS[1][0], MANIFEST), trained_from(0, seed=101)
    private = {n: own[n] if parse_key(n).part is Part.B else t for n, t in published.items()}
    assert same(tensors, private)


def test_nothing_is_kept_without_a_folder_and_none_is_needed(tmp_path: Path):
    own = OwnAdapter(None, "w")
    own.keep(run_spec(), train_task(), 0, adapter(seed=1))
    assert not own.is_kept
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_refuses_costs_the_copy_and_not_the_round(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    OwnAdapter(tmp_path / "file" / "own", "w").keep(run_spec(), train_task(), 0, adapter(seed=1))
    assert (tmp_path / "file").read_text() == "in the way"


def test_one_file_a_run(tmp_path: Path):
    own = OwnAdapter(tmp_path, "w")
    for name in ("one", "two", "one"):
        own.keep(run_spec(name), train_task(), 0, adapter(seed=1))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.safetensors", "two.safetensors"]
