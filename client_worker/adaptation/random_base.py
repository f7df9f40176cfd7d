"""Small base models with random weights, made on the spot: for examples and tests without a hub.

The tokenizer knows the 256 bytes and a few marks, so that every text has tokens.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason

__all__ = ["byte_tokenizer", "random_model"]

_PAD, _BEGIN, _END = "<pad>", "<s>", "</s>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)

_WIDTH = 64
_LAYERS = 2
_HEADS = 4
_MAX_TOKENS = 2048


def random_model(family: str, task: TaskType, head: dict[str, Any]) -> tuple[Any, Any]:
    """A model with random weights from torch's global generator, and its tokenizer.

    Args:
        family: "llama" or "bert".
        task: decides the head.
        head: num_labels, id2label and label2id, or nothing.

    Raises:
        FedLoraError: INVALID_MODEL for another family, or one that cannot do the task.
    """
    tokenizer = byte_tokenizer(classifier=family == "bert")
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "max_position_embeddings": _MAX_TOKENS,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        **head,
    }
    match family, task:
        case "llama", TaskType.CAUSAL_LM:
            return LlamaForCausalLM(LlamaConfig(**shape)), tokenizer
        case "llama", TaskType.SEQUENCE_CLASSIFICATION:
            return LlamaForSequenceClassification(LlamaConfig(**shape)), tokenizer
        case "bert", TaskType.SEQUENCE_CLASSIFICATION:
            return BertForSequenceClassification(BertConfig(**shape)), tokenizer
    raise FedLoraError(
        Reason.INVALID_MODEL,
        f"there is no random base model {family!r} for {task.value}",
        hint="Known: random:llama for both tasks, random:bert for sequence_classification",
    )


def byte_tokenizer(*, classifier: bool) -> Any:
    """A tokenizer of single bytes.

    Args:
        classifier: put the begin and end marks around every text, as encoders expect.
    """
    marks = [_PAD, _BEGIN, _END]
    letters = [*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if classifier:
        core.post_processor = processors.TemplateProcessing(
            single=f"{_BEGIN} $A {_END}",
            special_tokens=[(_BEGIN, letters.index(_BEGIN)), (_END, letters.index(_END))],
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=_PAD,
        bos_token=_BEGIN,
        eos_token=_END,
        model_max_length=_MAX_TOKENS,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer
