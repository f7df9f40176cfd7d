"""Base models in 4 bits: what is quantised, how well, and what stays as it was."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from support.worker_runs import causal_spec, classifier_spec
from torch import nn

from client_worker.adaptation.attach import attach_adapter
from client_worker.adaptation.base_model import load_base
from client_worker.adaptation.layers import adapted_layers, frozen_weight
from client_worker.adaptation.quantise import compute_in, decoded, quantise
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind, Quantization
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType


def in_4_bits(spec):
    return replace(spec, base_model=replace(spec.base_model, quantization=Quantization.NF4))


def linear_types(model):
    return {path: type(m).__name__ for path, m in model.named_modules() if isinstance(m, nn.Linear)}


def test_frozen_linear_layers_are_small_and_what_is_trained_in_full_is_not(bert):
    spec = in_4_bits(classifier_spec(bert))
    types = linear_types(load_base(spec, seed=0).model)
    assert types.pop("classifier") == "Linear"
    assert {*types.values()} == {"Linear4bit"}


def test_the_layer_that_gives_the_logits_of_a_language_model_stays(llama):
    types = linear_types(load_base(in_4_bits(causal_spec(llama)), seed=0).model)
    assert types.pop("lm_head") == "Linear"
    assert {*types.values()} == {"Linear4bit"}


def test_each_value_is_one_of_16_levels_of_its_block_and_near_what_it_was():
    # NF4's levels are the quantiles of a normal distribution: on normal weights the relative error
    # is known to be near 9 %, and 16 levels can hold no more than 16 values a block.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 32))
    weight = torch.randn(32, 128)
    model[0].weight.data = weight.clone()
    model.get_output_embeddings = lambda: None
    quantise(model, trained=())
    found = decoded(model[0].weight)
    assert found.shape == (32, 128)
    assert all(len(block.unique()) <= 16 for block in found.view(-1, 64))
    assert 0.07 < (found - weight).norm() / weight.norm() < 0.11
    assert model[0].weight.numel() * 2 == weight.numel(), "two values a byte"


def test_the_fingerprint_is_that_of_the_weights_before(bert):
    spec = classifier_spec(bert)
    assert load_base(in_4_bits(spec), seed=0).fingerprint == load_base(spec, seed=0).fingerprint


@pytest.mark.parametrize("kind", AdapterKind)
def test_the_model_computes_with_the_decoded_weights(bert, kind):
    spec = in_4_bits(classifier_spec(bert, kind=kind))
    small = attach_adapter(load_base(spec, seed=0), spec, rank=2, seed=0, dtype=DataType.F32)
    compute_in(small.module, torch.float32)
    state = {n: t + 0.1 * torch.ones_like(t) for n, t in small.state().items()}
    small.load_state(state)
    plain_spec = classifier_spec(bert, kind=kind)
    base = load_base(plain_spec, seed=0)
    quantised = load_base(spec, seed=0).model
    for path, layer in base.model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data = decoded(quantised.get_submodule(path).weight).clone()
    plain = attach_adapter(base, plain_spec, rank=2, seed=0, dtype=DataType.F32)
    plain.load_state(state)
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        found = small.module.eval()(input_ids=ids).logits
        expected = plain.module.eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_magnitudes_begin_at_the_rows_of_the_weights_that_are_there(bert):
    spec = in_4_bits(classifier_spec(bert, kind=AdapterKind.DORA))
    model = attach_adapter(load_base(spec, seed=0), spec, rank=2, seed=0, dtype=DataType.F32)
    for path, layer in adapted_layers(model.module).items():
        norms = frozen_weight(layer).norm(dim=1)
        held = next(
            t for n, t in model.state().items() if path in n and Part.MAGNITUDE.value in n.lower()
        )
        torch.testing.assert_close(held, norms, rtol=1e-5, atol=1e-6)


def test_without_the_package_the_way_out_is_named(bert, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(FedLoraError, match=r"fedlora\[quant\]") as caught:
        load_base(in_4_bits(classifier_spec(bert)), seed=0)
    assert caught.value.reason is Reason.MISSING_EXTRA
