"""In what a model computes, as far as a CPU can show it."""

import pytest
import torch
from support.worker_runs import classifier_spec, labelled_rows, trainer_for, worker_run, write_jsonl

from client_worker.data.config import DataConfig
from client_worker.training.precision import Precision
from client_worker.training.round_work import RoundWork
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.training import ComputePrecision

CPU = torch.device("cpu")


def test_a_cpu_is_left_to_float32():
    assert Precision.of(CPU) == Precision.of(CPU, ComputePrecision.F32) == Precision(CPU, None)


@pytest.mark.parametrize(
    ("supports", "found"), [(True, torch.bfloat16), (False, torch.float16)], ids=["new", "old"]
)
def test_cuda_is_left_to_the_narrow_type_that_it_has(monkeypatch, supports, found):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supports)
    device = torch.device("cuda", 0)
    assert Precision.of(device).autocast_dtype is found
    assert Precision.of(device, ComputePrecision.F32).autocast_dtype is None
    assert Precision.of(device, ComputePrecision.F16).autocast_dtype is torch.float16
    if not supports:
        with pytest.raises(FedLoraError, match='"bf16", which the device cuda:0 cannot compute'):
            Precision.of(device, ComputePrecision.BF16)


def test_float16_on_a_cpu_is_refused():
    with pytest.raises(FedLoraError, match='"f16", which the device cpu cannot compute') as caught:
        Precision.of(CPU, ComputePrecision.F16)
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_bfloat16_is_what_the_model_computes_in_and_the_adapter_stays_float32(bert, tmp_path):
    data = DataConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", labelled_rows(24))))
    losses, seen = {}, {}
    for precision in (ComputePrecision.F32, ComputePrecision.BF16):
        run = worker_run(classifier_spec(bert), local_steps=6, precision=precision)
        trainer = trainer_for(run, data)
        layer = next(m for m in trainer._model.module.modules() if hasattr(m, "lora_A"))

        def note(_layer: object, _given: object, out: torch.Tensor, at=precision) -> None:
            seen.setdefault(at, out.dtype)

        layer.register_forward_hook(note)
        outcome = trainer.train(RoundWork(round=1, seed=1))
        losses[precision] = outcome.metrics["train_loss"]
        assert {t.dtype for t in trainer.adapter().values()} == {torch.float32}
    assert seen == {ComputePrecision.F32: torch.float32, ComputePrecision.BF16: torch.bfloat16}
    f32, bf16 = losses.values()
    # 8 bits of a mantissa: not the same, and within a few roundings of it.
    assert f32 != bf16 == pytest.approx(f32, rel=0.05)
