"""A worker's own adapter is made a PEFT folder where it lies, or the command says where that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.federation import random_adapter
from support.runs import run_spec
from support.sample_run import sample_run

from aggregator_service.reporting.run_directory import RunDirectory
from client_worker.own_adapter import OwnAdapter
from fedlora.adapters.peft_files import read_peft_folder
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Task, TaskKind
from fedlora_cli.own_adapter import export_own_adapter, own_adapter_file
from fedlora_cli.run_folder import RunFolder

TENSORS = random_adapter(4, seed=3)


def kept(cache_dir: Path, worker: str, run: str = "sample") -> Path:
    own = OwnAdapter(cache_dir / "workers" / worker / "own", worker)
    task = Task(task_id="t", kind=TaskKind.TRAIN, round=5)
    own.keep(run_spec(run), task, 4, TENSORS)
    return own_adapter_file(run, worker, cache_dir)


def test_what_a_worker_keeps_becomes_a_peft_folder(tmp_path: Path):
    note = export_own_adapter(kept(tmp_path / "cache", "w"), tmp_path / "out")
    assert (note.run, note.worker, note.round, note.adapter_version) == ("sample", "w", 5, 4)
    assert note.is_trained
    assert note.spec == run_spec().adapter
    folder = read_peft_folder(tmp_path / "out")
    assert (folder.r, folder.lora_alpha) == (4, 8.0)
    found = load_file(folder.weights)
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(t, TENSORS[name]) for name, t in found.items())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_folder_that_was_exported_does_not_change_with_the_worker(tmp_path: Path):
    source = kept(tmp_path / "cache", "w")
    export_own_adapter(source, tmp_path / "out")
    source.write_bytes(b"")
    assert load_file(tmp_path / "out" / "adapter_model.safetensors").keys() == TENSORS.keys()


def test_the_worker_of_a_run_directory_is_found_by_its_name(tmp_path: Path):
    RunDirectory(tmp_path / "run").write_report(sample_run(), [])
    path = kept(RunFolder(tmp_path / "run").worker_cache_dir("worker-2"), "worker-2")
    assert own_adapter_file(str(tmp_path / "run"), "worker-2", None) == path


def test_the_command_says_that_it_belongs_on_the_workers_machine(tmp_path: Path):
    with pytest.raises(FedLoraError, match="no run directory") as caught:
        own_adapter_file("my-run", "w", None)
    assert caught.value.reason is Reason.NOT_FOUND
    assert "--cache-dir" in caught.value.hint
    with pytest.raises(FedLoraError, match="no adapter of its own for run 'my-run' here"):
        own_adapter_file("my-run", "w", tmp_path)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path):
    source = kept(tmp_path / "cache", "w")
    (tmp_path / "out").mkdir()
    with pytest.raises(FedLoraError, match="is there already"):
        export_own_adapter(source, tmp_path / "out")


def test_a_file_that_is_damaged_or_of_another_kind_is_refused(tmp_path: Path):
    source = kept(tmp_path / "cache", "w")
    source.write_bytes(source.read_bytes()[:100])
    with pytest.raises(FedLoraError) as caught:
        export_own_adapter(source, tmp_path / "out")
    assert caught.value.reason is Reason.INVALID_PAYLOAD
    save_file(TENSORS, source, {"format": "pt"})
    with pytest.raises(FedLoraError, match="expected the metadata fedlora_own"):
        export_own_adapter(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
