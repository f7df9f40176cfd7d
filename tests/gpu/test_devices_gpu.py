"""A real GPU: pinned by its UUID, held by one worker, and with too little memory for a batch."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from support.tiny_models import save_tiny_bert
from support.worker_runs import (
    classifier_spec,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)

from client_worker.data.config import DataConfig
from client_worker.training.round_work import RoundWork
from fedlora.devices import Device, NvmlDevices, device_lock

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PINNED = """
import sys
from client_worker.device import pinned_uuid, resolve_device, verify_device
resolve_device(sys.argv[1])
verify_device()
import torch
print(pinned_uuid(), torch.cuda.device_count(), torch.ones(2, device="cuda").sum().item())
"""


@pytest.fixture
def device() -> Device:
    """The first device of this machine."""
    return NvmlDevices().present()[0]


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )


def worker(device: Device, folder, **variables: str) -> subprocess.CompletedProcess[str]:
    """A worker process that would have to wait for its server, were it not refused before."""
    return python(
        "-m",
        "client_worker",
        f"--device=cuda:{device.uuid}",
        "--server=127.0.0.1:1",
        FEDLORA_WORKER__DEVICE_LOCK_DIR=str(folder),
        FEDLORA_WORKER__WAIT_FOR_SERVER_SECONDS="0.1",
        FEDLORA_DATA__PATH="unused",
        **variables,
    )


def test_a_process_pinned_by_uuid_computes_on_that_device_and_sees_no_other(device):
    for named in (device.uuid, device.uuid[:12]):
        done = python("-c", PINNED, f"cuda:{named}")
        assert done.stdout.split() == [device.uuid, "1", "2.0"], done.stderr


def test_nvml_tells_how_the_device_does(device):
    reading = NvmlDevices().read(device.uuid)
    assert 0 <= reading.memory_used_bytes <= reading.memory_total_bytes
    assert reading.memory_total_bytes > 1 << 30


def test_a_device_that_another_worker_holds_is_refused(device, tmp_path):
    with device_lock(device.uuid, tmp_path):
        refused = worker(device, tmp_path)
    assert refused.returncode == 6, refused.stderr
    assert "is another worker's" in refused.stderr
    # Alone it gets as far as its server, which is not there.
    assert worker(device, tmp_path).returncode == 4


def test_a_device_that_the_surroundings_withhold_is_refused(device, tmp_path):
    refused = worker(device, tmp_path, CUDA_VISIBLE_DEVICES="GPU-00000000")
    assert refused.returncode == 6, refused.stderr


@contextmanager
def memory_of(num_bytes: int) -> Iterator[None]:
    """Inside, torch may hold no more than that of the device."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(num_bytes / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_batch_that_does_not_fit_is_trained_in_passes_that_do(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", labelled_rows(4096))
    run = worker_run(
        classifier_spec(save_tiny_bert(tmp_path / "bert")), batch_size=2048, local_steps=2
    )
    data, work = DataConfig(path=str(path)), RoundWork(round=1, seed=1)

    def trained(micro_batch_size: int = 0):
        cut = replace(run.training, micro_batch_size=micro_batch_size)
        trainer = trainer_for(replace(run, training=cut), data, device="cuda:0")
        return trainer, trainer.train(work).metrics

    _, whole = trained()
    held = torch.cuda.memory_allocated()
    room = held + (int(whole["peak_device_bytes"]) - held) // 3
    # torch takes memory from the device in blocks of 2 and 20 MiB.
    with memory_of(room + (40 << 20)):
        trainer, found = trained()
    size = int(found["micro_batch_size"])
    assert 1 <= size < 2048
    expected, figures = trained(size)
    assert found["train_loss"] == pytest.approx(figures["train_loss"], rel=1e-3)
    for name, tensor in trainer.adapter().items():
        # Kernels that add in an order of their own, under AdamW: not the same bits, as on a CPU.
        assert torch.allclose(tensor, expected.adapter()[name], atol=1e-2), name
