from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from support.tiny_models import save_tiny_bert, save_tiny_llama
from support.worker_runs import causal_spec, classifier_spec
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from client_worker.adaptation.base_model import load_base
from fedlora.adapters.spec import BaseModel
from fedlora.errors import FedLoraError, Reason


def weights(base) -> dict[str, torch.Tensor]:
    return base.model.state_dict()


def test_the_head_has_the_runs_labels_and_is_the_same_on_every_worker(bert):
    first, second = (load_base(classifier_spec(bert), seed=5) for _ in range(2))
    assert first.model.config.id2label == {0: "admin", 1: "games", 2: "net"}
    assert torch.equal(weights(first)["classifier.weight"], weights(second)["classifier.weight"])
    other = load_base(classifier_spec(bert), seed=6)
    assert not torch.equal(weights(first)["classifier.weight"], weights(other)["classifier.weight"])


def test_loading_leaves_the_global_generator_as_it_was(bert):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_base(classifier_spec(bert), seed=5)
    assert torch.equal(torch.rand(3), expected)


def test_the_fingerprint_does_not_depend_on_the_fresh_head(bert):
    one, other = (load_base(classifier_spec(bert), seed=seed) for seed in (5, 6))
    assert one.fingerprint == other.fingerprint
    assert one.fingerprint.startswith("sha256:")


def test_the_fingerprint_tells_other_weights(bert, tmp_path):
    other = save_tiny_bert(tmp_path / "other", seed=1)
    assert (
        load_base(classifier_spec(bert), seed=5).fingerprint
        != load_base(classifier_spec(other), seed=5).fingerprint
    )


def test_a_base_that_is_not_the_runs_is_refused_with_both_fingerprints(bert):
    found = load_base(classifier_spec(bert), seed=5).fingerprint
    spec = classifier_spec(bert)
    pinned = replace(spec, base_model=replace(spec.base_model, fingerprint=found))
    assert load_base(pinned, seed=5).fingerprint == found
    wrong = replace(spec, base_model=replace(spec.base_model, fingerprint="sha256:other"))
    with pytest.raises(FedLoraError, match=f"{found} here, expected sha256:other") as caught:
        load_base(wrong, seed=5)
    assert caught.value.reason is Reason.BASE_MISMATCH


def test_a_head_that_would_stay_random_is_refused_with_the_way_out(bert):
    spec = classifier_spec(bert, modules_to_save=())
    with pytest.raises(FedLoraError, match="would stay random and frozen") as caught:
        load_base(spec, seed=5)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert 'modules_to_save = ["classifier"]' in caught.value.hint


def test_the_way_out_names_the_whole_random_module_and_nothing_that_was_brought(bert, tmp_path):
    spec = classifier_spec(tmp_path)
    model = BertForMaskedLM.from_pretrained(bert)
    model.save_pretrained(tmp_path)
    load_base(classifier_spec(bert), seed=5).tokenizer.save_pretrained(tmp_path)
    with pytest.raises(FedLoraError, match=r"bert\.pooler\.dense\.weight") as caught:
        load_base(spec, seed=5)
    # Not "dense", which is every feed-forward layer, and not without what was there.
    assert 'modules_to_save = ["classifier", "pooler"]' in caught.value.hint
    load_base(replace(spec, modules_to_save=("classifier", "pooler")), seed=5)


def test_a_head_for_other_labels_is_replaced(bert, tmp_path):
    model = BertForSequenceClassification.from_pretrained(bert, num_labels=7)
    model.save_pretrained(tmp_path)
    load_base(classifier_spec(bert), seed=5).tokenizer.save_pretrained(tmp_path)
    base = load_base(classifier_spec(tmp_path), seed=5)
    assert weights(base)["classifier.weight"].shape == (3, 24)


def test_a_trained_head_is_kept(bert, tmp_path):
    model = BertForSequenceClassification.from_pretrained(bert, num_labels=3)
    model.save_pretrained(tmp_path)
    load_base(classifier_spec(bert), seed=5).tokenizer.save_pretrained(tmp_path)
    base = load_base(classifier_spec(tmp_path, modules_to_save=()), seed=5)
    assert torch.equal(weights(base)["classifier.weight"], model.classifier.weight)


def test_weights_are_float32_whatever_the_checkpoint_holds(tmp_path):
    folder = save_tiny_llama(tmp_path)
    base = load_base(causal_spec(folder), seed=5)
    base.model.bfloat16().save_pretrained(folder)
    assert {p.dtype for p in load_base(causal_spec(folder), seed=5).model.parameters()} == {
        torch.float32
    }


def test_a_tokenizer_without_padding_borrows_a_token(llama, tmp_path):
    base = load_base(causal_spec(llama), seed=5)
    base.tokenizer.pad_token = None
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    loaded = load_base(causal_spec(tmp_path), seed=5)
    assert loaded.tokenizer.pad_token == "</s>"
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(llama, tmp_path):
    base = load_base(causal_spec(llama), seed=5)
    base.model.save_pretrained(tmp_path)
    core = base.tokenizer.backend_tokenizer
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(tmp_path)
    with pytest.raises(FedLoraError, match="names no token to pad with") as caught:
        load_base(causal_spec(tmp_path), seed=5)
    assert caught.value.reason is Reason.INVALID_MODEL


def test_a_folder_without_a_tokenizer_is_refused(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(FedLoraError, match="brings no tokenizer") as caught:
        load_base(classifier_spec(tmp_path), seed=5)
    assert "tokenizer.save_pretrained" in caught.value.hint


def test_a_folder_that_was_read_as_an_id_of_the_hub_is_told_how_to_write_it(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FedLoraError, match="'models/mine' cannot be loaded") as caught:
        load_base(causal_spec("models/mine"), seed=5)
    assert "begins with ./" in caught.value.hint


def test_a_folder_with_no_weights_is_refused(bert, tmp_path):
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    with pytest.raises(
        FedLoraError, match="cannot be loaded for sequence_classification"
    ) as caught:
        load_base(classifier_spec(tmp_path), seed=5)
    assert caught.value.reason is Reason.INVALID_MODEL


@pytest.mark.parametrize("make", [causal_spec, classifier_spec])
def test_a_random_base_is_the_same_on_every_worker(make):
    head = {"modules_to_save": ("score",)} if make is classifier_spec else {}
    spec = make("random:llama", target_modules=("q_proj",), **head)
    one, two, other = (load_base(spec, seed=seed).fingerprint for seed in (5, 5, 6))
    assert one == two != other


def test_a_random_base_of_an_unknown_kind_is_refused():
    spec = causal_spec("random:llama")
    for model_id in ("random:gpt9", "random:bert"):
        with pytest.raises(FedLoraError, match="Known: random:llama"):
            load_base(replace(spec, base_model=BaseModel(model_id=model_id)), seed=1)
