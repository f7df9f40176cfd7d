from __future__ import annotations

import hashlib

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from client_worker.adaptation.fingerprint import fingerprint
from fedlora.adapters.names import PREFIX, is_inside


def state() -> dict[str, torch.Tensor]:
    return {
        "encoder.weight": torch.arange(6.0).reshape(2, 3),
        "encoder.steps": torch.tensor(3),
        "classifier.weight": torch.zeros(2, 2),
    }


def test_it_is_the_documented_digest():
    lines = []
    for name, text, data in (
        ("a", "torch.float32\0[2]", b"\0\0\x80\x3f\0\0\0\x40"),
        ("b", "torch.bfloat16\0[1]", b"\x80\x3f"),
    ):
        lines.append(f"{name}\0{text}\0{hashlib.sha256(data).hexdigest()}\n")
    expected = "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()
    tensors = {"b": torch.tensor([1.0]).bfloat16(), "a": torch.tensor([1.0, 2.0])}
    assert fingerprint(tensors, trained=()) == expected


def changed(name: str, tensor: torch.Tensor) -> str:
    return fingerprint({**state(), name: tensor}, trained=("classifier",))


def test_one_changed_weight_shape_dtype_or_name_changes_it():
    base = fingerprint(state(), trained=("classifier",))
    weight = state()["encoder.weight"]
    bumped = weight.clone()
    bumped[1, 2] = torch.nextafter(bumped[1, 2], torch.tensor(9.0))
    others = {
        changed("encoder.weight", bumped),
        changed("encoder.weight", weight.reshape(3, 2)),
        changed("encoder.weight", weight.int()),
        changed("encoder.extra", weight),
        changed("encoder.steps", torch.tensor(4)),
    }
    assert base not in others
    assert len(others) == 5


def test_a_trained_module_is_left_out():
    base = fingerprint(state(), trained=("classifier",))
    assert changed("classifier.weight", torch.ones(2, 2)) == base
    assert fingerprint(state(), trained=()) != base


def test_the_layout_in_memory_does_not_matter():
    weight = state()["encoder.weight"]
    assert changed("encoder.weight", weight.T.contiguous().T) == changed("encoder.weight", weight)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("classifier.weight", True),
        ("bert.classifier.dense.bias", True),
        ("my_classifier.weight", True),
        ("classifier2.weight", False),
        ("encoder.classifier", False),
    ],
)
def test_modules_are_matched_by_the_end_of_their_path_as_peft_does(name, inside):
    assert is_inside(name, ("classifier",)) is inside


def test_what_counts_as_trained_in_full_is_what_peft_trains_in_full():
    with torch.random.fork_rng():
        model = DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=16, dim=8, hidden_dim=8, n_layers=1, n_heads=1)
        )
    ours = {name for name in model.state_dict() if is_inside(name, ("classifier",))}
    config = LoraConfig(target_modules=["q_lin"], modules_to_save=["classifier"])
    state = get_peft_model_state_dict(get_peft_model(model, config))
    theirs = {name.removeprefix(PREFIX) for name in state if ".lora_" not in name}
    assert ours == theirs
    assert "pre_classifier.weight" in ours
