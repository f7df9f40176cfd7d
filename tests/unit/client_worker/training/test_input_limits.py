from __future__ import annotations

import pytest
import torch
from support.tiny_models import TEXTS, word_tokenizer
from support.worker_runs import (
    causal_spec,
    classifier_spec,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from client_worker.data.config import DataConfig
from client_worker.training.input_limits import InputLimits
from fedlora.errors import FedLoraError, Reason

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")

SMALL = {
    "vocab_size": 30,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}


def gpt2(**changes):
    shape = {"vocab_size": 30, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}
    return GPT2LMHeadModel(GPT2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **changes}))


MODELS = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "gpt2": gpt2,
    # Its places begin behind the padding's.
    "roberta": lambda: RobertaModel(RobertaConfig(**{**SMALL, "max_position_embeddings": 18})),
    "opt": lambda: OPTModel(OPTConfig(**SMALL, ffn_dim=8, word_embed_proj_dim=8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_sequence_of_as_many_tokens_as_there_are_places_passes_and_one_more_does_not(name):
    model = MODELS[name]().eval()
    limits = InputLimits.of(model)
    assert limits == InputLimits(num_tokens=30, num_places=16)
    for tokens in (16, 17):
        inputs = {
            "input_ids": torch.full((1, tokens), 5),
            "attention_mask": torch.ones(1, tokens, dtype=torch.long),
        }
        if tokens == 16:
            model(**inputs)
        else:
            with pytest.raises((IndexError, RuntimeError)):
                model(**inputs)


def test_rotary_places_have_no_end():
    limits = InputLimits.of(LlamaModel(LlamaConfig(**SMALL)))
    assert limits.num_places is None


def test_texts_longer_than_the_model_has_places_are_refused_with_the_length_to_set(bert, tmp_path):
    rows = labelled_rows(6)
    rows[4]["text"] = " ".join([*TEXTS * 4])
    data = DataConfig(path=str(write_jsonl(tmp_path / "long.jsonl", rows)))
    with pytest.raises(FedLoraError, match="tokens; the base model has places for 64") as e:
        trainer_for(worker_run(classifier_spec(bert), max_sequence_tokens=512), data)
    assert e.value.reason is Reason.INVALID_CONFIG
    assert "max_sequence_tokens = 64" in e.value.hint
    trainer_for(worker_run(classifier_spec(bert), max_sequence_tokens=64), data)


def test_short_texts_are_taken_whatever_the_most_tokens(bert, tmp_path):
    data = DataConfig(path=str(write_jsonl(tmp_path / "short.jsonl", labelled_rows(6))))
    trainer_for(worker_run(classifier_spec(bert), max_sequence_tokens=512), data)


def test_packed_rows_are_as_long_as_the_most_tokens(tmp_path):
    gpt2(vocab_size=len(word_tokenizer(encoder=False))).save_pretrained(tmp_path)
    word_tokenizer(encoder=False).save_pretrained(tmp_path)
    data = DataConfig(path=str(write_jsonl(tmp_path / "t.jsonl", [{"text": TEXTS[0]}] * 4)))
    spec = causal_spec(tmp_path, target_modules=("c_attn",))
    with pytest.raises(FedLoraError, match="of 32 tokens; the base model has places for 16"):
        trainer_for(worker_run(spec, packing=True), data)
    trainer_for(worker_run(spec, packing=True, max_sequence_tokens=16), data)


def test_a_token_that_the_model_has_no_vector_for_is_refused_with_the_way_out(tmp_path):
    tokenizer = word_tokenizer(encoder=False)
    gpt2(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": "<added>"})
    tokenizer.save_pretrained(tmp_path)
    data = DataConfig(path=str(write_jsonl(tmp_path / "t.jsonl", [{"text": TEXTS[0]}] * 4)))
    with pytest.raises(FedLoraError, match="the base model has vectors for") as caught:
        trainer_for(worker_run(causal_spec(tmp_path, target_modules=("c_attn",))), data)
    assert caught.value.reason is Reason.INVALID_MODEL
    assert "resize_token_embeddings" in caught.value.hint


def test_a_text_without_a_token_is_refused(tmp_path):
    core = Tokenizer(models.BPE(vocab={"</s>": 0, "a": 1}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="</s>").save_pretrained(tmp_path)
    gpt2().save_pretrained(tmp_path)
    rows = [{"text": "a a"}, {"text": "日本"}]
    data = DataConfig(path=str(write_jsonl(tmp_path / "t.jsonl", rows)))
    with pytest.raises(FedLoraError, match="has no token") as caught:
        trainer_for(worker_run(causal_spec(tmp_path, target_modules=("c_attn",))), data)
    assert caught.value.reason is Reason.INVALID_DATA
