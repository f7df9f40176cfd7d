from __future__ import annotations

import pytest

from client_worker.adaptation.random_base import byte_tokenizer


@pytest.mark.parametrize(
    "text", ["plain words", "zwölf Äpfel, 日本, \N{SNOWMAN}", "tabs\tand\nlines"]
)
def test_every_text_has_one_token_a_byte_and_comes_back(text):
    tokenizer = byte_tokenizer(classifier=False)
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


def test_an_encoders_texts_stand_between_marks():
    tokenizer = byte_tokenizer(classifier=True)
    ids = tokenizer("ab", truncation=True, max_length=3)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "a", "</s>"]


def test_chats_have_a_template():
    tokenizer = byte_tokenizer(classifier=False)
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "user: hi</s>assistant: "
