from __future__ import annotations

import pytest
import torch
from support.worker_runs import causal_spec, classifier_spec

from client_worker.adaptation.attach import attach_adapter
from client_worker.adaptation.base_model import load_base
from client_worker.adaptation.core import principal_factors
from fedlora.adapters.names import Part, part_key
from fedlora.errors import FedLoraError
from fedlora.tensors.manifest import DataType

IDS = torch.tensor([[2, 7, 9, 3]])
PATH = "model.layers.0.mlp.down_proj"


def attached(spec):
    return attach_adapter(load_base(spec, seed=11), spec, rank=4, seed=11, dtype=DataType.F32)


def logits(model):
    with torch.no_grad():
        return model.module.eval()(input_ids=IDS).logits


def with_cores(model, seed=0):
    """The model's first version with cores that are not zero."""
    model.begin_with_cores(11)
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(t.shape, generator=generator) if name.endswith("_core") else t
        for name, t in model.state().items()
    }


def test_a_core_turns_what_a_has_made_before_b_gets_it(llama):
    spec = causal_spec(llama)
    model = attached(spec)
    version = with_cores(model)
    model.load_state(version)
    a, b, core = (version[part_key(PATH, part)] for part in (Part.A, Part.B, Part.CORE))
    layer = model.module.get_base_model().get_submodule(PATH)
    x = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    expected = layer.base_layer(x) + spec.scaling(4) * x @ (b @ core @ a).T
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_an_adapter_with_cores_begins_as_nothing_over_the_weights_principal_components(llama):
    model = attached(causal_spec(llama))
    before = logits(model)
    model.begin_with_cores(11)
    assert torch.allclose(logits(model), before, atol=1e-6)
    weight = model.module.get_base_model().get_submodule(PATH).base_layer.weight
    values = torch.linalg.svdvals(weight.detach())
    state = model.state()
    product = state[part_key(PATH, Part.B)] @ state[part_key(PATH, Part.A)]
    assert (weight - product).norm() < 1.001 * values[4:].norm()
    assert not state[part_key(PATH, Part.CORE)].any()


def test_cores_come_with_the_first_version_that_has_them_and_go_out_again(bert):
    first, other = attached(classifier_spec(bert)), attached(classifier_spec(bert))
    version = with_cores(first)
    other.load_state(version)
    assert all(torch.equal(t, version[name]) for name, t in other.state().items())
    first.load_state(version)
    assert torch.equal(logits(first), logits(other))


def test_a_core_is_trained_alone_and_has_a_gradient_from_the_start(bert):
    model = attached(classifier_spec(bert))
    model.begin_with_cores(11)
    factors, _ = model.trainable([Part.CORE])
    assert [p.shape for p in factors] == [(4, 4)] * len(model.shape.layout.modules)
    model.module.train()(input_ids=IDS).logits.square().sum().backward()
    assert sum(bool(p.grad.any()) for p in factors) > len(factors) // 2
    assert all(p.grad is None for n, p in model.module.named_parameters() if ".lora_" in n)


def test_a_version_with_some_cores_missing_is_refused(bert):
    model = attached(classifier_spec(bert))
    version = with_cores(model)
    del version[next(name for name in version if name.endswith("_core"))]
    with pytest.raises(FedLoraError, match="not an adapter of this model"):
        model.load_state(version)


def test_a_rank_beyond_the_weights_own_is_filled_with_zeros():
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    a, b = principal_factors(weight, 5, seed=1, path="m")
    torch.testing.assert_close(b @ a, weight)
    assert (a.shape, b.shape) == ((5, 6), (3, 5))
    assert not a[3:].any()


@torch.no_grad()
def test_cores_and_base_changes_follow_the_precision_of_the_arithmetic(bert):
    model = attached(classifier_spec(bert))
    version = with_cores(model)
    added = {
        part_key(m.path, part): torch.full(m.shape(part, 2), 0.1)
        for m in model.shape.layout.modules
        for part in (Part.BASE_A, Part.BASE_B)
    }
    model.load_state({**version, **added})
    exact = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = logits(model)
    # bfloat16 carries 8 bits; a few roundings a layer stay well within 10 % of the largest logit.
    assert (rounded.float() - exact).abs().max() < 0.1 * exact.abs().max()
