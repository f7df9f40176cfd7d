"""Examples become token ids with the targets that the loss is taken over.

For a classification the target is one label. For a causal LM there is one target for each token:
the token itself where the model is to learn it, IGNORED elsewhere. Prompt and completion are
tokenised apart, so that the border between them never falls inside a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from client_worker.data.examples import Chat, Completion, Example, LabelledText, PlainText
from fedlora.errors import FedLoraError, Reason

__all__ = ["IGNORED", "EncodedExample", "encode_examples"]

IGNORED = -100
"""target without loss, as torch's cross_entropy knows it"""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """Tokens and targets of one example."""

    input_ids: tuple[int, ...]
    targets: tuple[int, ...]
    """(label,) for a classification, else one target for each token"""
    experience: int = 1
    """as of the example that it was made of"""

    @property
    def num_tokens(self) -> int:
        """Length of the sequence."""
        return len(self.input_ids)


def encode_examples(
    examples: Sequence[Example], tokenizer: Any, *, max_tokens: int
) -> list[EncodedExample]:
    """Tokens and targets of examples of one kind.

    Args:
        examples: from `to_examples`.
        tokenizer: a transformers tokenizer.
        max_tokens: longer sequences lose their end, or, where nothing to learn from would be left,
            their beginning.

    Raises:
        FedLoraError: INVALID_MODEL if chats meet a tokenizer without a chat template, or with one
            that writes earlier turns differently once later ones follow.
    """
    if examples and isinstance(examples[0], LabelledText):
        return _labelled(examples, tokenizer, max_tokens)
    encoded = []
    for example in examples:
        match example:
            case Completion(prompt, completion):
                ids, targets = _completion(tokenizer, prompt, completion)
            case PlainText(text):
                ids, targets = _completion(tokenizer, "", text)
            case Chat():
                ids, targets = _chat(tokenizer, example)
            case LabelledText():
                raise AssertionError("examples of two kinds")
        cut = _cut(ids, targets, max_tokens)
        encoded.append(replace(cut, experience=example.experience))
    return encoded


def _labelled(examples: Sequence[Example], tokenizer: Any, max_tokens: int) -> list[EncodedExample]:
    labelled = [e for e in examples if isinstance(e, LabelledText)]
    tokens = tokenizer([e.text for e in labelled], truncation=True, max_length=max_tokens)
    return [
        EncodedExample(tuple(ids), (example.label,), example.experience)
        for ids, example in zip(tokens["input_ids"], labelled, strict=True)
    ]


def _completion(tokenizer: Any, prompt: str, completion: str) -> tuple[list[int], list[int]]:
    """Beginning token and prompt without loss, then completion and end token with loss."""
    head = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    head += _plain_ids(tokenizer, prompt)
    tail = _plain_ids(tokenizer, completion)
    if tokenizer.eos_token_id is not None:
        tail.append(tokenizer.eos_token_id)
    return head + tail, [IGNORED] * len(head) + tail


def _plain_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _chat(tokenizer: Any, chat: Chat) -> tuple[list[int], list[int]]:
    """Each assistant's turn, from where it begins to speak to where the turn ends, has loss."""
    if not tokenizer.chat_template:
        raise FedLoraError(
            Reason.INVALID_MODEL,
            "the base model's tokenizer has no chat template, and the data are chats",
            hint="Take an instruction-tuned base model, or columns with prompt and completion",
        )
    messages = [{"role": m.role, "content": m.content} for m in chat.messages]
    ids = _template_ids(tokenizer, messages, prompt=False)
    targets = [IGNORED] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _template_ids(tokenizer, messages[:number], prompt=True)
        until = _template_ids(tokenizer, messages[: number + 1], prompt=False)
        if ids[: len(until)] != until or until[: len(before)] != before:
            raise FedLoraError(
                Reason.INVALID_MODEL,
                "the tokenizer's chat template writes a turn differently once others follow, so "
                f"the tokens of message {number + 1} cannot be told from the others",
                hint="Split chats into one row for each answer, or use prompt and completion",
            )
        targets[len(before) : len(until)] = ids[len(before) : len(until)]
    return ids, targets


def _template_ids(tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool) -> list[int]:
    if not messages:
        return []
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    return _plain_ids(tokenizer, text)


def _cut(ids: list[int], targets: list[int], max_tokens: int) -> EncodedExample:
    # The first token is predicted from nothing, so its target counts for nothing.
    if any(t != IGNORED for t in targets[1:max_tokens]):
        return EncodedExample(tuple(ids[:max_tokens]), tuple(targets[:max_tokens]))
    return EncodedExample(tuple(ids[-max_tokens:]), tuple(targets[-max_tokens:]))
