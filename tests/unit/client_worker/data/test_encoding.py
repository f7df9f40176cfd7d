from __future__ import annotations

import pytest
from support.tiny_models import CHAT_TEMPLATE, REWRITING_TEMPLATE, word_tokenizer

from client_worker.data.encoding import IGNORED, encode_examples
from client_worker.data.examples import Chat, Completion, LabelledText, Message, PlainText
from fedlora.errors import FedLoraError, Reason


@pytest.fixture
def tokenizer():
    return word_tokenizer(encoder=False)


def words(tokenizer, ids) -> list[str]:
    return tokenizer.convert_ids_to_tokens([i for i in ids if i != IGNORED])


def only(examples):
    (example,) = examples
    return example


def test_a_text_to_classify_has_its_marks_and_one_target():
    tokenizer = word_tokenizer(encoder=True)
    example = only(encode_examples([LabelledText("file system", 2)], tokenizer, max_tokens=32))
    assert words(tokenizer, example.input_ids) == ["[CLS]", "file", "system", "[SEP]"]
    assert example.targets == (2,)


def test_a_long_text_is_cut_and_keeps_its_end_mark():
    tokenizer = word_tokenizer(encoder=True)
    example = only(encode_examples([LabelledText("file " * 40, 0)], tokenizer, max_tokens=10))
    assert example.num_tokens == 10
    assert words(tokenizer, example.input_ids)[-1] == "[SEP]"


def test_the_prompt_carries_no_loss_and_the_completion_with_its_end_does(tokenizer):
    example = only(
        encode_examples([Completion("file system", "backup tool")], tokenizer, max_tokens=32)
    )
    assert words(tokenizer, example.input_ids) == [
        "<s>", "file", "system", "backup", "tool", "</s>",
    ]  # fmt: skip
    assert words(tokenizer, example.targets) == ["backup", "tool", "</s>"]
    assert example.targets[:3] == (IGNORED,) * 3


def test_plain_text_carries_loss_everywhere_but_on_the_begin_mark(tokenizer):
    example = only(encode_examples([PlainText("file system")], tokenizer, max_tokens=32))
    assert words(tokenizer, example.targets) == ["file", "system", "</s>"]


def test_too_long_a_completion_loses_its_end(tokenizer):
    example = only(
        encode_examples([Completion("file", "backup tool archiver")], tokenizer, max_tokens=4)
    )
    assert words(tokenizer, example.input_ids) == ["<s>", "file", "backup", "tool"]


def test_too_long_a_prompt_loses_its_beginning_rather_than_the_completion(tokenizer):
    example = only(encode_examples([Completion("file " * 20, "backup")], tokenizer, max_tokens=5))
    assert words(tokenizer, example.input_ids) == ["file", "file", "file", "backup", "</s>"]
    assert words(tokenizer, example.targets) == ["backup", "</s>"]


CHAT = Chat(
    (
        Message("system", "file"),
        Message("user", "game"),
        Message("assistant", "cards"),
        Message("user", "network"),
        Message("assistant", "protocol old"),
    )
)


def test_only_the_assistants_turns_of_a_chat_carry_loss(tokenizer):
    tokenizer.chat_template = CHAT_TEMPLATE
    example = only(encode_examples([CHAT], tokenizer, max_tokens=64))
    assert words(tokenizer, example.targets) == ["cards", "</s>", "protocol", "old", "</s>"]
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in CHAT.messages], tokenize=False
    )
    assert list(example.input_ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_template_that_rewrites_earlier_turns_is_refused_where_it_matters(tokenizer):
    tokenizer.chat_template = REWRITING_TEMPLATE
    with pytest.raises(FedLoraError, match="tokens of message 3 cannot be told") as caught:
        encode_examples([CHAT], tokenizer, max_tokens=64)
    assert caught.value.reason is Reason.INVALID_MODEL
    one_answer = Chat(CHAT.messages[:3])
    with pytest.raises(FedLoraError, match="message 3"):
        encode_examples(
            [Chat((*one_answer.messages, Message("user", "x")))], tokenizer, max_tokens=9
        )


def test_a_chat_needs_a_tokenizer_with_a_template(tokenizer):
    with pytest.raises(FedLoraError, match="no chat template"):
        encode_examples([CHAT], tokenizer, max_tokens=64)
