"""PEFT folders, read and written without peft, held against peft itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.builders import write_folder, write_update
from support.peft_models import adapted, causal_lm, classifier, delta_weights, gpt2, logits

from fedlora.adapters.names import Factor, lora_key
from fedlora.adapters.peft_files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    adapter_config_json,
    peft_target_modules,
    read_peft_folder,
    write_peft_folder,
)
from fedlora.adapters.spec import AdapterSpec, BaseModel, TaskType
from fedlora.errors import FedLoraError, Reason


def spec_of(task_type, targets, **other):
    return AdapterSpec(
        base_model=BaseModel(model_id="tiny"), task_type=task_type, target_modules=targets, **other
    )


def from_folder(model, folder):
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder).eval()


CASES = [
    pytest.param(classifier, {"target_modules": ["query", "value"]}, id="classifier"),
    pytest.param(
        classifier,
        {"target_modules": ["query"], "task_type": "SEQ_CLS", "use_rslora": True, "r": 3},
        id="rslora-head",
    ),
    pytest.param(
        causal_lm,
        {
            "target_modules": ["q_proj", "v_proj"],
            "task_type": "CAUSAL_LM",
            "rank_pattern": {"layers.1.self_attn.q_proj": 6, "q_proj": 2},
            "alpha_pattern": {r"layers\.[01]\..*\.v_proj": 3},
        },
        id="patterns",
    ),
    pytest.param(causal_lm, {"target_modules": "all-linear", "lora_alpha": 1.5}, id="all-linear"),
    pytest.param(
        causal_lm, {"target_modules": ["q_proj"], "layers_to_transform": [1]}, id="one-layer"
    ),
    pytest.param(gpt2, {"target_modules": ["c_attn"], "fan_in_fan_out": True}, id="conv1d"),
]


@pytest.mark.parametrize(("model", "config"), CASES)
def test_factors_and_scales_read_from_a_folder_give_pefts_own_delta_weights(
    model, config, tmp_path
):
    wrapped = adapted(model(), seed=1, **config)
    wrapped.save_pretrained(tmp_path)
    folder = read_peft_folder(tmp_path)
    tensors, expected = load_file(folder.weights), delta_weights(wrapped)
    assert set(folder.ranks) == set(folder.scaling) == set(expected)
    for path, delta in expected.items():
        a, b = (tensors[lora_key(path, f)].double() for f in (Factor.LORA_A, Factor.LORA_B))
        assert folder.ranks[path] == a.shape[0]
        torch.testing.assert_close(folder.scaling[path] * b @ a, delta, rtol=0, atol=1e-6)
    if "layers_to_transform" in config:
        assert folder.target_modules == ("model.layers.1.self_attn.q_proj",)


PATTERN_TABLE = [
    ({"q_proj": 2}, {"layers.0.q_proj", "layers.1.q_proj", "layers.11.q_proj"}),
    ({"layers.1.q_proj": 2}, {"layers.1.q_proj"}),
    ({r"layers\.[01]\.v_proj": 2}, {"layers.0.v_proj", "layers.1.v_proj"}),
    ({".*proj": 2}, "all"),
    ({"proj": 2}, set()),
    ({"^layers.1.q_proj": 2}, {"layers.1.q_proj"}),
    ({"base_model.model.layers.1.q_proj": 2}, set()),
]
PATHS = [f"layers.{i}.{p}" for i in (0, 1, 11) for p in ("q_proj", "v_proj")]


@pytest.mark.parametrize(("pattern", "matched"), PATTERN_TABLE)
def test_rank_patterns_match_as_peft_matches_them(pattern, matched, tmp_path):
    ranks = {p: 2 if matched == "all" or p in matched else 4 for p in PATHS}
    folder = write_folder(
        tmp_path / "f",
        seed=1,
        modules=dict.fromkeys(PATHS, (6, 5)),
        ranks=ranks,
        rank_pattern=pattern,
        lora_alpha=8,
    )
    found = read_peft_folder(folder)
    assert found.ranks == ranks
    # A pattern of ranks leaves lora_alpha alone, so s changes with it.
    assert found.scaling == {p: 8 / r for p, r in ranks.items()}
    assert found.is_uniform == (set(ranks.values()) == {4})


def test_the_first_matching_pattern_wins(tmp_path):
    ranks = {p: 2 if p.endswith("q_proj") else 4 for p in PATHS}
    folder = write_folder(
        tmp_path / "f",
        seed=1,
        modules=dict.fromkeys(PATHS, (6, 5)),
        ranks=ranks,
        rank_pattern={"q_proj": 2, "layers.1.q_proj": 6},
        alpha_pattern={"layers.0.q_proj": 2},
    )
    found = read_peft_folder(folder)
    assert found.scaling["layers.0.q_proj"] == 1.0
    assert found.scaling["layers.1.q_proj"] == 4.0


@pytest.mark.parametrize(
    ("task", "model", "targets", "more"),
    [
        (TaskType.SEQUENCE_CLASSIFICATION, classifier, ("query", "value"), ("classifier",)),
        # The head is the base model's own.
        (TaskType.SEQUENCE_CLASSIFICATION, classifier, ("query", "value"), ()),
        (TaskType.SEQUENCE_CLASSIFICATION, classifier, ("query",), ("pooler",)),
        (TaskType.SEQUENCE_CLASSIFICATION, classifier, ("all-linear",), ()),
        (TaskType.CAUSAL_LM, causal_lm, ("q_proj", "v_proj"), ()),
        (TaskType.CAUSAL_LM, causal_lm, (r".*\.1\..*_proj",), ()),
        (TaskType.CAUSAL_LM, causal_lm, ("all-linear",), ()),
        (TaskType.CAUSAL_LM, causal_lm, ("q_proj",), ("lm_head",)),
    ],
)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_folder_we_write_loads_in_peft_and_computes_the_same(
    task, model, targets, more, use_rslora, tmp_path
):
    spec = spec_of(task, targets, r=8, lora_alpha=12.0, modules_to_save=more, use_rslora=use_rslora)
    trained = adapted(
        model(),
        seed=2,
        r=3,
        lora_alpha=12,
        use_rslora=use_rslora,
        # As a worker attaches it: peft would add heads of its own choice for a task.
        target_modules=peft_target_modules(targets),
        modules_to_save=list(more) or None,
    )
    trained.save_pretrained(tmp_path / "theirs")
    write_peft_folder(
        tmp_path / "ours", spec=spec, rank=3, weights=tmp_path / "theirs" / WEIGHTS_NAME
    )
    loaded = from_folder(model(), tmp_path / "ours")
    assert torch.equal(logits(loaded), logits(trained))
    assert not torch.equal(logits(loaded), logits(model()))
    mine, theirs = (read_peft_folder(tmp_path / n) for n in ("ours", "theirs"))
    assert mine.scaling == theirs.scaling == dict.fromkeys(mine.ranks, spec.scaling(3))


def test_writing_replaces_a_folder_and_leaves_nothing_else(tmp_path):
    first, second = (write_update(tmp_path / f"{u}.safetensors", seed=u) for u in (1, 2))
    spec, folder = spec_of(TaskType.CAUSAL_LM, ("query",)), tmp_path / "deep" / "final"
    for weights in (first, second):
        write_peft_folder(folder, spec=spec, rank=4, weights=weights)
        assert (folder / WEIGHTS_NAME).read_bytes() == weights.read_bytes()
    assert sorted(p.name for p in folder.parent.iterdir()) == ["final"]
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_a_write_that_fails_leaves_the_old_folder(tmp_path):
    weights = write_update(tmp_path / "w.safetensors", seed=1)
    spec, folder = spec_of(TaskType.CAUSAL_LM, ("query",)), tmp_path / "final"
    write_peft_folder(folder, spec=spec, rank=4, weights=weights)
    with pytest.raises(FileNotFoundError):
        write_peft_folder(folder, spec=spec, rank=4, weights=tmp_path / "missing")
    assert (folder / WEIGHTS_NAME).read_bytes() == weights.read_bytes()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_configuration_is_minimal_and_sorted():
    spec = spec_of(TaskType.SEQUENCE_CLASSIFICATION, ("b", "a"), modules_to_save=("head",))
    text = adapter_config_json(spec, 4)
    config = json.loads(text)
    assert list(config) == sorted(config)
    assert config["target_modules"] == ["a", "b"]
    assert config["lora_alpha"] == 16
    assert isinstance(config["lora_alpha"], int)
    assert adapter_config_json(replace(spec, lora_alpha=1.5), 4).count('"lora_alpha": 1.5') == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("v", "q"), ["q", "v"]),
        (("layers.0.q_proj",), ["layers.0.q_proj"]),
        ((r".*\.(q|v)_proj",), r".*\.(q|v)_proj"),
        (("all-linear",), "all-linear"),
    ],
)
def test_one_entry_that_is_no_plain_name_is_an_expression(names, expected):
    assert peft_target_modules(names) == expected


@pytest.mark.parametrize(
    "setting",
    [
        {"use_qalora": True},
        {"peft_type": "LOHA"},
        {"bias": "all"},
        {"lora_bias": True},
        {"init_lora_weights": "pissa_niter_4"},
        {"trainable_token_indices": [1]},
    ],
)
def test_adapters_of_other_mathematics_are_refused_by_setting(setting, tmp_path):
    folder = write_folder(tmp_path / "f", seed=1, **setting)
    with pytest.raises(FedLoraError, match=next(iter(setting))) as caught:
        read_peft_folder(folder)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"r": 5}, "has rank 4 in adapter_model.safetensors, but adapter_config.json says 5"),
        ({"lora_alpha": "big"}, "lora_alpha: expected a positive number"),
        ({"r": 0}, "r: expected a positive number"),
        ({"rank_pattern": {"(": 4}}, "no regular expression"),
        ({"rank_pattern": [4]}, "rank_pattern: expected an object"),
        ({"target_modules": 3}, "target_modules: expected names"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(setting, words, tmp_path):
    folder = write_folder(tmp_path / "f", seed=1, **{"rank": 4, **setting})
    with pytest.raises(FedLoraError) as caught:
        read_peft_folder(folder)
    assert caught.value.reason is Reason.INVALID_PAYLOAD
    assert words in str(caught.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FedLoraError, match=r"no file adapter_config\.json") as caught:
        read_peft_folder(tmp_path)
    assert caught.value.reason is Reason.NOT_FOUND
    folder = write_folder(tmp_path / "f", seed=1)
    (folder / WEIGHTS_NAME).rename(folder / "adapter_model.bin")
    with pytest.raises(FedLoraError, match="a pickle, which is not read"):
        read_peft_folder(folder)


def test_an_adapted_embedding_is_refused_with_its_folder_and_the_way_out(tmp_path):
    model = adapted(causal_lm(), seed=1, r=2, target_modules=["q_proj", "embed_tokens"])
    model.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    with pytest.raises(FedLoraError, match=r"theirs.*got an embedding.*embed_tokens") as caught:
        read_peft_folder(tmp_path / "theirs")
    assert "modules_to_save" in caught.value.hint


def test_files_that_are_neither_json_nor_safetensors_are_refused(tmp_path):
    folder = write_folder(tmp_path / "f", seed=1)
    (folder / WEIGHTS_NAME).write_bytes(b"junk")
    with pytest.raises(FedLoraError, match="cannot be read"):
        read_peft_folder(folder)
    (folder / CONFIG_NAME).write_text("{")
    with pytest.raises(FedLoraError, match="is not JSON"):
        read_peft_folder(folder)
