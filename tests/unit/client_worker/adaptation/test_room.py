"""The largest rank that fits is found from shapes alone, and is the one of the model as loaded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.worker_runs import causal_spec, classifier_spec
from torch import nn

from client_worker.adaptation.attach import attach_adapter, numbers_per_rank
from client_worker.adaptation.base_model import load_base, outline
from client_worker.adaptation.room import base_bytes, fitting_rank, largest_rank
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind, BaseModel, Quantization, TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType

BASE, Q = 4000, 10
"""bytes of a base model, and numbers of one component of its adapter"""


@pytest.mark.parametrize(
    ("rank", "expected"), [(1, 1), (1.99, 1), (2, 2), (7.9, 4), (8, 8), (100, 64)]
)
def test_a_component_takes_a_quarter_of_what_the_base_model_leaves(rank: float, expected: int):
    free = BASE + int(4 * 16 * Q * rank)
    assert largest_rank(free, BASE, Q) == expected


@pytest.mark.parametrize("free", [0, BASE - 1, BASE, BASE + 1])
def test_the_rank_is_never_below_one(free: int):
    assert largest_rank(free, BASE, Q) == 1


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_shapes_say_what_the_loaded_model_has(bert, kind):
    spec = classifier_spec(bert, kind=kind)
    base = load_base(spec, seed=0)
    num_base = sum(p.numel() for p in base.model.parameters())
    described = outline(spec)
    assert all(p.device.type == "meta" for p in described.parameters())
    assert base_bytes(described, spec) == 4 * num_base
    model = attach_adapter(base, spec, rank=3, seed=0, dtype=DataType.F32)
    per_rank = sum(p.numel() for part in (Part.A, Part.B) for p in model.factors(part).values()) / 3
    assert numbers_per_rank(described, spec) == per_rank


@pytest.mark.parametrize("model", ["llama", "random:llama"])
def test_decoders_fit_as_encoders_do(request, model):
    folder = request.getfixturevalue(model) if model == "llama" else model
    spec = causal_spec(folder)
    described = outline(spec)
    base = base_bytes(described, spec)
    free = base + 4 * 16 * numbers_per_rank(described, spec) * 9
    assert fitting_rank(spec, free) == 8


def test_a_base_model_in_four_bits_leaves_more_room(bert):
    plain = classifier_spec(bert)
    small = replace(plain, base_model=replace(plain.base_model, quantization=Quantization.NF4))
    described = outline(plain)
    linear = [
        m for n, m in described.named_modules() if isinstance(m, nn.Linear) and "class" not in n
    ]
    weights = sum(layer.weight.numel() for layer in linear)
    assert weights > 0
    saved = base_bytes(described, plain) - base_bytes(described, small)
    assert saved == pytest.approx((4 - 4.13 / 8) * weights, abs=1)


def test_finding_the_rank_draws_no_random_number(bert):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fitting_rank(classifier_spec(bert), 10**9)
    assert torch.equal(torch.rand(2), expected)


def test_a_model_that_is_not_there_or_does_not_fit_is_refused(bert, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    missing = replace(classifier_spec(bert), base_model=BaseModel(model_id=str(tmp_path)))
    for spec, text in (
        (missing, "cannot be loaded"),
        (classifier_spec(bert, target_modules=("nothing",)), "cannot be attached"),
        (classifier_spec(bert, modules_to_save=("head",)), "has no module 'head'"),
    ):
        assert spec.task_type is TaskType.SEQUENCE_CLASSIFICATION
        with pytest.raises(FedLoraError, match=text) as caught:
            fitting_rank(spec, 10**9)
        assert caught.value.reason is Reason.INVALID_MODEL
