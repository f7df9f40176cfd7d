"""Federations whose workers train on a CUDA device, and the rank for which it has room."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from support.tiny_models import save_tiny_bert
from support.worker_federation import federate, run_of
from support.worker_runs import classifier_spec
from torch import Tensor, nn

from client_worker.adaptation.attach import numbers_per_rank
from client_worker.adaptation.base_model import load_base, outline
from client_worker.adaptation.room import base_bytes, fitting_rank
from client_worker.memory import free_bytes
from fedlora.adapters.spec import AdapterKind, Quantization

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda:0"
IDS = torch.tensor([[2, 7, 9, 3, 11, 8], [2, 14, 6, 21, 5, 3]])


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    found: Tensor = model.to(DEVICE).eval()(input_ids=IDS.to(DEVICE)).logits
    return found


def test_the_rank_that_fits_goes_by_what_is_free_on_the_device():
    spec = classifier_spec("random:bert")
    described = outline(spec)
    base, per_rank = base_bytes(described, spec), 16 * numbers_per_rank(described, spec)
    free = free_bytes(DEVICE)
    assert 0 < free <= torch.cuda.get_device_properties(0).total_memory
    # Half of what is free is taken: some power of two less has room, and not more than a quarter.
    taken = torch.empty(free // 2, dtype=torch.uint8, device=DEVICE)
    left = free_bytes(DEVICE)
    assert left <= free - taken.numel() + (64 << 20)
    rank = fitting_rank(spec, left)
    assert rank < fitting_rank(spec, free)
    assert rank * per_rank <= (left - base) / 4 < 2 * rank * per_rank


@pytest.mark.parametrize("kind", list(AdapterKind))
async def test_adapters_above_a_base_in_4_bits_are_trained_combined_and_served(
    tmp_path: Path, kind: AdapterKind
):
    spec = classifier_spec(save_tiny_bert(tmp_path / "bert"), kind=kind)
    small = replace(spec.base_model, quantization=Quantization.NF4)
    done = await federate(
        tmp_path, run_of(replace(spec, base_model=small), "flora_na"), device=DEVICE
    )
    base = load_base(done.spec.adapter, seed=done.spec.seed)
    before = logits(base.model)
    served = logits(PeftModel.from_pretrained(base.model, done.final))
    assert (served - before).abs().max() > 1e-2
    for trainer in done.trainers.values():
        weights = dict(trainer.module.named_parameters())
        assert {t.device.type for t in weights.values()} == {torch.device(DEVICE).type}
        four_bits = {t.dtype for name, t in weights.items() if "query.base_layer.w" in name}
        assert four_bits == {torch.uint8}
        torch.testing.assert_close(logits(trainer.module), served, rtol=1e-3, atol=1e-3)
