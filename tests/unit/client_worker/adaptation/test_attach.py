from __future__ import annotations

import math

import pytest
import torch
from support.worker_runs import causal_spec, classifier_spec

from client_worker.adaptation.attach import attach_adapter
from client_worker.adaptation.base_model import load_base
from fedlora.adapters.names import Part, part_key
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorManifest


def attached(spec, *, rank=4, seed=11, dtype=DataType.F32):
    base = load_base(spec, seed=seed)
    return attach_adapter(base, spec, rank=rank, seed=seed, dtype=dtype)


def logits(model) -> torch.Tensor:
    ids = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        return model.module.eval()(input_ids=ids).logits


def perturbed(state, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: t + torch.randn(t.shape, generator=generator).to(t.dtype) for name, t in state.items()
    }


def test_the_layout_names_every_adapted_layer_with_its_true_widths(llama):
    modules = {m.path: m for m in attached(causal_spec(llama)).shape.layout.modules}
    assert sorted(modules) == [
        f"model.layers.{i}.{name}" for i in (0, 1) for name in ("mlp.down_proj", "self_attn.k_proj")
    ]
    k_proj, down_proj = (
        modules[f"model.layers.0.{n}"] for n in ("self_attn.k_proj", "mlp.down_proj")
    )
    assert (k_proj.in_features, k_proj.out_features) == (24, 12)
    assert (down_proj.in_features, down_proj.out_features) == (40, 24)


def test_the_adapter_handed_out_is_what_the_layout_declares(bert):
    model = attached(classifier_spec(bert), rank=3, dtype=DataType.BF16)
    state = model.state()
    assert not model.shape.layout.manifest(3, DataType.BF16).difference(TensorManifest.of(state))
    assert "base_model.model.classifier.weight" in state
    assert all(t.is_contiguous() and t.device.type == "cpu" for t in state.values())


def test_a_fresh_adapter_changes_nothing_and_is_the_same_on_every_worker(bert):
    spec = classifier_spec(bert)
    plain = load_base(spec, seed=11)
    with torch.no_grad():
        expected = plain.model.eval()(input_ids=torch.tensor([[2, 7, 9, 3]])).logits
    one, two = attached(spec), attached(spec)
    assert torch.equal(logits(one), expected)
    assert all(torch.equal(a, two.state()[name]) for name, a in one.state().items())
    assert any(
        not torch.equal(a, attached(spec, seed=12).state()[n]) for n, a in one.state().items()
    )


def test_a_smaller_rank_begins_with_the_first_rows_of_a_larger_one(bert):
    spec = classifier_spec(bert)
    small, large = attached(spec, rank=2).state(), attached(spec, rank=5).state()
    for name, tensor in small.items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(tensor.shape[1])
            assert torch.equal(tensor, large[name][:2])
            assert bound / 2 < tensor.abs().max() <= bound
        elif ".lora_B." in name:
            assert not tensor.any()


def test_an_adapter_comes_back_bit_by_bit(bert):
    model, other = attached(classifier_spec(bert)), attached(classifier_spec(bert))
    state = perturbed(model.state())
    model.load_state(state)
    assert all(torch.equal(t, state[name]) for name, t in model.state().items())
    other.load_state(model.state())
    assert torch.equal(logits(model), logits(other))
    assert not torch.equal(logits(model), logits(attached(classifier_spec(bert))))


def test_what_was_handed_out_does_not_change_with_the_model(bert):
    model = attached(classifier_spec(bert))
    before = model.state()
    kept = {name: t.clone() for name, t in before.items()}
    model.load_state(perturbed(before))
    assert all(torch.equal(t, kept[name]) for name, t in before.items())


def renamed(state):
    name = next(iter(state))
    return {("x" + n if n == name else n): t for n, t in state.items()}


def missing(state):
    return dict(list(state.items())[1:])


def extra(state):
    return state | {"base_model.model.bert.pooler.other.lora_A.weight": torch.zeros(4, 24)}


def reshaped(state):
    name = next(n for n in state if "query.lora_A" in n)
    return state | {name: torch.zeros(5, 24)}


def recast(state):
    name = next(iter(state))
    return state | {name: state[name].half()}


def with_adapter_name(state):
    return {n.replace("lora_A.weight", "lora_A.default.weight"): t for n, t in state.items()}


@pytest.mark.parametrize("spoil", [renamed, missing, extra, reshaped, recast, with_adapter_name])
def test_anything_but_exactly_this_adapter_is_refused_and_changes_nothing(bert, spoil):
    model = attached(classifier_spec(bert))
    before = model.state()
    with pytest.raises(FedLoraError, match="not an adapter of this model") as caught:
        model.load_state(spoil(perturbed(before)))
    assert caught.value.reason is Reason.MANIFEST_MISMATCH
    assert all(torch.equal(t, before[name]) for name, t in model.state().items())


@pytest.mark.parametrize("rslora", [False, True])
def test_the_product_counts_with_the_runs_scaling(bert, rslora):
    spec = classifier_spec(bert, use_rslora=rslora, lora_alpha=6.0, modules_to_save=("classifier",))
    model = attached(spec, rank=4)
    model.load_state(perturbed(model.state()))
    state = model.state()
    path = "bert.encoder.layer.0.intermediate.dense"
    a, b = (state[f"base_model.model.{path}.lora_{f}.weight"] for f in "AB")
    layer = model.module.get_base_model().get_submodule(path)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    expected = layer.base_layer(x) + spec.scaling(4) * (x @ a.T) @ b.T
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_only_the_adapter_and_the_modules_to_save_are_trained(bert):
    model = attached(classifier_spec(bert))
    factors, head = model.trainable()
    assert len(factors) == 2 * len(model.shape.layout.modules)
    assert sorted(p.shape for p in head) == [(3,), (3, 24)]
    trained = {n for n, p in model.module.named_parameters() if p.requires_grad}
    assert all(".lora_" in n or ".modules_to_save." in n for n in trained)


@pytest.mark.parametrize("part", [Part.A, Part.B])
def test_one_part_alone_is_freed_and_the_next_round_may_free_the_other(bert, part):
    model = attached(classifier_spec(bert))
    other = Part.B if part is Part.A else Part.A
    for parts in ([part], [other], [part]):
        factors, head = model.trainable(parts)
        names = {id(p): n for n, p in model.module.named_parameters()}
        (wanted,) = parts
        assert {names[id(p)].split(".lora_")[1][0].lower() for p in factors} == {wanted.value}
        assert len(factors) == len(model.shape.layout.modules)
        assert len(head) == 2
        trained = [p for p in model.module.parameters() if p.requires_grad]
        assert {id(p) for p in trained} == {id(p) for p in (*factors, *head)}


def test_a_workers_own_tensors_take_the_place_of_the_global_ones_in_full_precision(bert):
    model = attached(classifier_spec(bert), dtype=DataType.BF16)
    given = perturbed(model.state())
    name = next(n for n in given if "lora_B" in n)
    own = {name: torch.full(given[name].shape, 1 / 3)}
    model.load_state(given, own)
    assert torch.equal(model.state(DataType.F32)[name], own[name])
    assert all(torch.equal(t, given[n]) for n, t in model.state().items() if n != name)


def test_no_module_is_trained_in_full_that_the_run_does_not_name(bert, tmp_path):
    # peft would add "classifier" on its own for a task it knows.
    base = load_base(classifier_spec(bert), seed=1)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    model = attached(classifier_spec(tmp_path, modules_to_save=()))
    assert model.shape.layout.saved_tensors == ()
    assert model.trainable()[1] == []


def test_a_module_to_save_is_not_adapted_as_well(bert):
    model = attached(classifier_spec(bert, modules_to_save=("classifier", "pooler")))
    saved = {t.name for t in model.shape.layout.saved_tensors}
    assert "base_model.model.bert.pooler.dense.weight" in saved
    assert not any("pooler" in m.path for m in model.shape.layout.modules)


@pytest.mark.parametrize(
    "target", [r".*\.layer\.1\..*query", "bert.encoder.layer.1.attention.self.query"]
)
def test_targets_may_be_a_regular_expression_or_a_whole_path(bert, target):
    model = attached(classifier_spec(bert, target_modules=(target,)))
    assert [m.path for m in model.shape.layout.modules] == [
        "bert.encoder.layer.1.attention.self.query"
    ]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"target_modules": ("qurey",)}, "Linear layers of this model: classifier, dense, key"),
        ({"modules_to_save": ("classifier", "poller")}, "Did you mean 'pooler'"),
        (
            {"target_modules": ("word_embeddings",)},
            "word_embeddings' is no linear layer but Embedding",
        ),
    ],
)
def test_modules_that_are_not_there_or_no_linear_layers_are_refused(bert, changes, complaint):
    with pytest.raises(FedLoraError, match=complaint) as caught:
        attached(classifier_spec(bert, **changes))
    assert caught.value.reason is Reason.INVALID_MODEL


@pytest.mark.parametrize("kind", [AdapterKind.DORA, AdapterKind.HIRA])
def test_the_other_kinds_begin_as_nothing_and_come_back_bit_by_bit(bert, kind):
    spec = classifier_spec(bert, kind=kind)
    plain, model, other = attached(classifier_spec(bert)), attached(spec), attached(spec)
    assert torch.allclose(logits(model), logits(plain), atol=1e-6)
    state = perturbed(model.state())
    model.load_state(state)
    assert all(torch.equal(t, state[name]) for name, t in model.state().items())
    other.load_state(model.state())
    assert torch.equal(logits(model), logits(other))
    assert not torch.allclose(logits(model), logits(plain), atol=1e-3)


def test_dora_adds_one_magnitude_an_output_and_begins_with_the_weights_row_norms(bert):
    model = attached(classifier_spec(bert, kind=AdapterKind.DORA))
    path = "bert.encoder.layer.0.intermediate.dense"
    weight = model.module.get_base_model().get_submodule(path).base_layer.weight
    magnitude = model.state()[part_key(path, Part.MAGNITUDE)]
    torch.testing.assert_close(magnitude, weight.norm(dim=1))


def test_hira_multiplies_the_frozen_weight(bert):
    model = attached(classifier_spec(bert, kind=AdapterKind.HIRA))
    model.load_state(perturbed(model.state()))
    path = "bert.encoder.layer.0.intermediate.dense"
    a, b = (model.state()[part_key(path, part, hira=True)] for part in (Part.A, Part.B))
    layer = model.module.get_base_model().get_submodule(path)
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))
    frozen = layer.base_layer
    expected = x @ (frozen.weight * (1 + b @ a)).T + frozen.bias
    assert torch.allclose(layer(x), expected, atol=1e-4)


def test_dora_has_three_parts_that_are_freed_one_by_one(bert):
    model = attached(classifier_spec(bert, kind=AdapterKind.DORA))
    names = {id(p): n for n, p in model.module.named_parameters()}
    for part, mark in ((Part.A, "lora_A"), (Part.MAGNITUDE, "magnitude"), (Part.B, "lora_B")):
        factors, _ = model.trainable([part])
        assert len(factors) == len(model.shape.layout.modules)
        assert all(mark in names[id(p)] and p.requires_grad for p in factors)
        trained = {n for n, p in model.module.named_parameters() if p.requires_grad}
        assert all(mark in n or ".modules_to_save." in n for n in trained)


def test_a_lower_rank_keeps_the_products_of_the_components_that_stay(bert):
    spec = classifier_spec(bert)
    model = attached(spec)
    state = perturbed(model.state())
    for name, tensor in state.items():
        if name.endswith("lora_B.weight"):
            tensor[:, 2:] = 0
    model.load_state(state)
    before = logits(model)
    model.resize(2)
    assert torch.allclose(logits(model), before, atol=1e-5)
    lowered = model.state()
    manifest = model.shape.layout.manifest(2, DataType.F32)
    assert not manifest.difference(TensorManifest.of(lowered))
    # And a version of any rank up to the one attached takes its place.
    model.load_state(state)
    assert torch.equal(logits(model), before)
    model.load_state(lowered)
    assert torch.allclose(logits(model), before, atol=1e-5)
    with pytest.raises(FedLoraError, match=r"expected f32 \[4, 24\], got f32 \[5, 24\]"):
        model.load_state(attached(spec, rank=5).state())
