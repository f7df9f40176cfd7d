"""The names in `fedlora.adapters.names` are those of the peft that is installed."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from peft import HiraConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from torch import nn

from fedlora.adapters.names import PREFIX, Factor, lora_key, parse_key

IN, OUT, RANK = 12, 20, 3


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(IN, OUT)
        self.square = nn.Linear(RANK, RANK)


class Model(nn.Module):
    """Non-square layers, and a square one of exactly the adapter's rank: shapes tell nothing."""

    config = None

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.classifier = nn.Linear(OUT, 2)


PATHS = {f"layers.{i}.{name}" for i in (0, 1) for name in ("q_proj", "square")}
TARGETS = ["q_proj", "square"]
CONFIGS = {
    "lora": LoraConfig(r=RANK, target_modules=TARGETS, modules_to_save=["classifier"]),
    "dora": LoraConfig(
        r=RANK, target_modules=TARGETS, modules_to_save=["classifier"], use_dora=True
    ),
    "hira": HiraConfig(r=RANK, target_modules=TARGETS, modules_to_save=["classifier"]),
}
FACTORS = {
    "lora": {Factor.LORA_A, Factor.LORA_B},
    "dora": {Factor.LORA_A, Factor.LORA_B, Factor.MAGNITUDE},
    "hira": {Factor.HIRA_A, Factor.HIRA_B},
}
SHAPES = {
    Factor.LORA_A: (RANK, IN),
    Factor.LORA_B: (OUT, RANK),
    Factor.MAGNITUDE: (OUT,),
    Factor.HIRA_A: (RANK, IN),
    Factor.HIRA_B: (OUT, RANK),
}


def keys_of(kind: str) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(get_peft_model(Model(), CONFIGS[kind]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_every_key_of_a_live_adapter_is_taken_apart_rightly(kind):
    found = defaultdict(set)
    for key, tensor in keys_of(kind).items():
        parsed = parse_key(key)
        assert lora_key(parsed.path, parsed.factor) == key
        found[parsed.path].add(parsed.factor)
        if parsed.path.endswith("q_proj"):
            assert tuple(tensor.shape) == SHAPES[parsed.factor]
    assert found == {
        **dict.fromkeys(PATHS, FACTORS[kind]),
        "classifier.weight": {Factor.SAVED},
        "classifier.bias": {Factor.SAVED},
    }


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_paths_are_those_of_the_base_model(kind):
    base = Model()
    modules, parameters = dict(base.named_modules()), dict(base.named_parameters())
    for key in keys_of(kind):
        parsed = parse_key(key)
        assert parsed.path in (parameters if parsed.factor is Factor.SAVED else modules)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_file_has_the_same_keys(kind, tmp_path):
    model = get_peft_model(Model(), CONFIGS[kind])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(keys_of(kind))


def test_peft_still_puts_this_before_a_path():
    assert all(key.startswith(PREFIX) for key in keys_of("lora"))
