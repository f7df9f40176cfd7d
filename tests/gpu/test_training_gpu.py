"""The trainer on a CUDA device: same loss as on the CPU up to the precision of its arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.tiny_models import save_tiny_bert, save_tiny_llama
from support.worker_runs import (
    causal_spec,
    classifier_spec,
    completion_rows,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)

from client_worker.data.config import DataConfig
from client_worker.training import precision
from client_worker.training.round_work import RoundWork
from fedlora.adapters.spec import Quantization
from fedlora.runs.tasks import EvaluationScope

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses_on(device, run, path) -> list[float]:
    trainer = trainer_for(run, DataConfig(path=str(path)), device=device)
    losses = []
    trainer.train(
        RoundWork(
            round=1,
            seed=1,
            on_progress=lambda step, total, metrics: losses.append(metrics["train_loss"]),
        )
    )
    return losses


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_classifier_learns_as_on_the_cpu(tmp_path, monkeypatch, dtype):
    if dtype is torch.float16:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert precision.Precision.of(torch.device("cuda", 0)).autocast_dtype is dtype
    run = worker_run(classifier_spec(save_tiny_bert(tmp_path / "bert")), local_steps=6)
    path = write_jsonl(tmp_path / "a.jsonl", labelled_rows(24))
    # bfloat16 carries 8 bits; a few roundings a layer stay well within 5 % of the loss.
    assert losses_on("cuda:0", run, path) == pytest.approx(losses_on("cpu", run, path), rel=0.05)


def test_a_base_in_4_bits_learns_as_on_the_cpu(tmp_path):
    spec = causal_spec(save_tiny_llama(tmp_path / "llama"))
    small = replace(spec.base_model, quantization=Quantization.NF4)
    run = worker_run(replace(spec, base_model=small), local_steps=6)
    path = write_jsonl(tmp_path / "a.jsonl", completion_rows(16))
    assert losses_on("cuda:0", run, path) == pytest.approx(losses_on("cpu", run, path), rel=0.05)


@pytest.mark.parametrize("packing", [False, True])
def test_a_language_model_learns_as_on_the_cpu(tmp_path, packing):
    spec = causal_spec(save_tiny_llama(tmp_path / "llama"))
    run = worker_run(spec, local_steps=6, packing=packing, gradient_checkpointing=True)
    path = write_jsonl(tmp_path / "a.jsonl", completion_rows(16))
    assert losses_on("cuda:0", run, path) == pytest.approx(losses_on("cpu", run, path), rel=0.05)


def test_adapters_leave_the_device_and_return_unchanged(tmp_path):
    run = worker_run(classifier_spec(save_tiny_bert(tmp_path / "bert")))
    data = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", labelled_rows(24))))
    trainer = trainer_for(run, data, device="cuda:0")
    outcome = trainer.train(RoundWork(round=1, seed=1))
    sent = trainer.adapter()
    assert {t.device.type for t in sent.values()} == {"cpu"}
    trainer.load_adapter(sent)
    assert all(torch.equal(t, sent[n]) for n, t in trainer.adapter().items())
    assert outcome.metrics["peak_device_bytes"] > 0
    (scores,) = trainer.evaluate(EvaluationScope.LOCAL, round=1)
    assert scores.num_examples > 0
