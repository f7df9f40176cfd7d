from __future__ import annotations

import pytest
import torch
from support.worker_runs import causal_spec
from torch import nn

from client_worker.adaptation.base_model import load_base
from client_worker.adaptation.packing import require_exact_packing
from fedlora.errors import FedLoraError, Reason


def test_a_decoder_of_transformers_keeps_packed_examples_apart(llama):
    base = load_base(causal_spec(llama), seed=1)
    require_exact_packing(base.model.eval(), len(base.tokenizer))


class Leaky(nn.Module):
    """Passes `position_ids` on and masks by order alone, as a decoder of one's own might."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, **inputs):
        return self.inner(**inputs, attention_mask=torch.ones_like(inputs["input_ids"]))


def test_a_decoder_that_leaks_is_refused(llama):
    base = load_base(causal_spec(llama), seed=1)
    with pytest.raises(FedLoraError, match="attention cross from one packed example") as caught:
        require_exact_packing(Leaky(base.model).eval(), len(base.tokenizer))
    assert caught.value.reason is Reason.INVALID_MODEL
    assert caught.value.hint == "Set training.packing = false"
