from __future__ import annotations

import copy

import pytest
import torch
from support.worker_runs import causal_spec, classifier_spec

from client_worker.adaptation.attach import attach_adapter
from client_worker.adaptation.base_model import load_base
from client_worker.adaptation.fingerprint import fingerprint
from fedlora.adapters.names import PREFIX, Part, part_key
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType

IDS = torch.tensor([[2, 7, 9, 3]])


def attached(spec):
    return attach_adapter(load_base(spec, seed=11), spec, rank=4, seed=11, dtype=DataType.F32)


def logits(module):
    with torch.no_grad():
        return module.eval()(input_ids=IDS).logits


def changes(model, *, seed, rank=3, only=slice(None)):
    """A change of rank 3 for some modules."""
    generator = torch.Generator().manual_seed(seed)
    return {
        part_key(m.path, part): 0.3 * torch.randn(m.shape(part, rank), generator=generator)
        for m in model.shape.layout.modules[only]
        for part in (Part.BASE_A, Part.BASE_B)
    }


def dense(model, change):
    """A copy of the model with the change in its frozen weights."""
    other = copy.deepcopy(model.module)
    for key, a in change.items():
        if key.endswith(".base_A"):
            path = key.removeprefix(PREFIX).removesuffix(".base_A")
            layer = other.get_base_model().get_submodule(path)
            b = change[part_key(path, Part.BASE_B)]
            layer.base_layer.weight.data += b @ a
    return other


@pytest.mark.parametrize("only", [slice(None), slice(1, 3)])
def test_a_change_counts_as_if_it_were_in_the_weights(llama, only):
    model = attached(causal_spec(llama))
    version, change = model.state(), changes(model, seed=1, only=only)
    expected = logits(dense(model, change))
    plain = logits(model.module)
    model.load_state({**version, **change})
    assert torch.allclose(logits(model.module), expected, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-2)


def test_versions_take_each_others_place_in_any_order(bert):
    model = attached(classifier_spec(bert))
    plain, before = model.state(), logits(model.module)
    one, two = (
        {**plain, **changes(model, seed=seed, rank=rank)} for seed, rank in ((1, 3), (2, 5))
    )
    seen = []
    for version in (one, one, two, one, plain):
        model.load_state(version)
        seen.append(logits(model.module))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(seen[4], before)


def test_the_frozen_weights_keep_their_fingerprint_and_get_no_gradient(bert):
    spec = classifier_spec(bert)
    base = load_base(spec, seed=11)
    model = attach_adapter(base, spec, rank=4, seed=11, dtype=DataType.F32)
    model.load_state({**model.state(), **changes(model, seed=1)})
    model.trainable()
    model.module.train()(input_ids=IDS).logits.sum().backward()
    gained = {n for n, p in model.module.named_parameters() if p.grad is not None}
    assert all(".lora_" in n or ".modules_to_save." in n for n in gained)
    plain = model.module.unload().state_dict()
    assert fingerprint(plain, trained=spec.modules_to_save) == base.fingerprint


def lonely(change):
    """Without its A."""
    return dict(list(change.items())[1:])


def misshapen(change):
    return {name: t[..., :-1] if name.endswith("base_B") else t for name, t in change.items()}


@pytest.mark.parametrize("spoil", [lonely, misshapen])
def test_a_change_that_does_not_fit_its_layer_is_refused(bert, spoil):
    model = attached(classifier_spec(bert))
    before = logits(model.module)
    with pytest.raises(FedLoraError, match="not an adapter of this model") as caught:
        model.load_state({**model.state(), **spoil(changes(model, seed=1))})
    assert caught.value.reason is Reason.MANIFEST_MISMATCH
    assert torch.equal(logits(model.module), before)
