from __future__ import annotations

import pytest

from client_worker.data.config import DataConfig
from client_worker.data.examples import (
    Chat,
    Completion,
    LabelledText,
    Message,
    PlainText,
    to_examples,
)
from client_worker.data.rows import Row
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError

CONFIG = DataConfig(path="a.jsonl")
CLASSIFY, CONTINUE = TaskType.SEQUENCE_CLASSIFICATION, TaskType.CAUSAL_LM
ASK = {"role": "user", "content": "why?"}
ANSWER = {"role": "assistant", "content": "so."}


def made(values, task=CONTINUE, labels=()):
    return to_examples([Row(values, "a.jsonl, line 1")], CONFIG, task, labels)[0]


def test_a_label_becomes_its_place_in_the_runs_labels():
    row = {"text": "x", "label": "net"}
    assert made(row, CLASSIFY, ("admin", "net")) == LabelledText("x", 1)


def test_a_label_the_run_does_not_have_is_told_with_those_it_has():
    said = r"line 1: column 'label': expected .* 2 labels, got str of length 3\. Labels: admin, net"
    with pytest.raises(FedLoraError, match=said):
        made({"text": "x", "label": "nte"}, CLASSIFY, ("admin", "net"))


def test_chats_go_before_completions_and_completions_before_plain_text():
    everything = {"messages": [ASK, ANSWER], "prompt": "p", "completion": "c", "text": "t"}
    assert made(everything) == Chat((Message("user", "why?"), Message("assistant", "so.")))
    del everything["messages"]
    assert made(everything) == Completion("p", "c")
    del everything["completion"]
    assert made(everything) == PlainText("t")


def test_a_file_with_none_of_the_columns_is_refused_with_those_that_were_looked_for():
    with pytest.raises(
        FedLoraError, match=r"a column 'messages', or .* or 'text', got none of them among 1"
    ):
        made({"question": "x"})


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ("hello", "expected a list of messages"),
        ([], "expected a list of messages"),
        ([ASK, "so."], "message 2: expected"),
        ([{"role": "user"}], "message 1: expected"),
        ([{"role": "boss", "content": "x"}], "message 1: expected a role of"),
        ([ASK], "without an assistant's turn"),
    ],
)
def test_a_broken_chat_is_refused(messages, complaint):
    with pytest.raises(FedLoraError, match=complaint):
        made({"messages": messages})
