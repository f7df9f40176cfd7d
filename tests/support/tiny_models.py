"""Base models of a few thousand weights and their tokenizers, made on the spot in a folder.

Their layers are not square, so that no test passes with in_features and out_features swapped.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXTS = (
    "file system archiver and backup tool",
    "small game of cards with funny graphics",
    "network daemon that speaks an old protocol",
    "font with serifs designed for books",
    "library to read and write sound files",
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>")

CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)

REWRITING_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content if loop.last else 'cut' }} </s> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
"""shortens every turn once another follows, as templates that drop earlier reasoning do"""


def word_tokenizer(*, encoder: bool) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer of the words in TEXTS; for an encoder with [CLS] and [SEP] around."""
    words = sorted({word for text in TEXTS for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if encoder:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names)


def save_tiny_bert(folder: Path, *, seed: int = 0, dropout: float = 0.0) -> Path:
    """An encoder without a head."""
    tokenizer = word_tokenizer(encoder=True)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_llama(folder: Path, *, seed: int = 0, chat_template: str | None = None) -> Path:
    """A decoder with grouped keys and values: k_proj and v_proj are not square."""
    tokenizer = word_tokenizer(encoder=False)
    tokenizer.chat_template = chat_template
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
