"""Rows become typed examples; whatever is wrong with a row is said with its line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from client_worker.data.config import DataConfig
from client_worker.data.described import described
from client_worker.data.rows import Row
from fedlora.adapters.spec import TaskType

__all__ = ["Chat", "Completion", "Example", "LabelledText", "Message", "PlainText", "to_examples"]

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Joining:
    experience: int = 1
    """of a continual run, from 1: when it joins (`fedlora.runs.continual`)"""


@dataclass(frozen=True, slots=True)
class LabelledText(_Joining):
    """A text and the index of its label."""

    text: str
    label: int


@dataclass(frozen=True, slots=True)
class Completion(_Joining):
    """A prompt, which carries no loss, and what follows it; nothing is put between them."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class PlainText(_Joining):
    """A text all of which carries loss."""

    text: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat(_Joining):
    """A conversation; the assistant's turns carry the loss."""

    messages: tuple[Message, ...]


Example = LabelledText | Completion | PlainText | Chat


def to_examples(
    rows: Sequence[Row], config: DataConfig, task: TaskType, labels: Sequence[str]
) -> list[Example]:
    """The examples of a task, one for each row.

    Args:
        rows: at least one.
        config: names of the columns.
        task: decides which columns are read; see `DataConfig`.
        labels: names of the classes in the order of the head's outputs.

    Raises:
        FedLoraError: INVALID_DATA at the first row with a missing column, no text, an unknown
            label, or a chat without an answer.
    """
    if task is TaskType.SEQUENCE_CLASSIFICATION:
        index = {label: i for i, label in enumerate(labels)}
        return [_labelled(row, config, index) for row in rows]
    columns = rows[0].values
    if config.messages_column in columns:
        return [_chat(row, config.messages_column) for row in rows]
    if config.prompt_column in columns and config.completion_column in columns:
        return [
            Completion(row.text(config.prompt_column), row.text(config.completion_column))
            for row in rows
        ]
    if config.text_column in columns:
        return [PlainText(row.text(config.text_column)) for row in rows]
    raise rows[0].error(
        f"expected a column {config.messages_column!r}, or {config.prompt_column!r} and "
        f"{config.completion_column!r}, or {config.text_column!r}, got none of them "
        f"among {len(columns)}",
        rows[0].how_to_name_columns,
    )


def _labelled(row: Row, config: DataConfig, index: Mapping[str, int]) -> LabelledText:
    text, label = row.text(config.text_column), row.category(config.label_column)
    if label not in index:
        raise row.error(
            f"column {config.label_column!r}: expected one of the run's {len(index)} labels, "
            f"got {described(label)}",
            f"Labels: {', '.join(index)}",
        )
    return LabelledText(text, index[label])


def _chat(row: Row, column: str) -> Chat:
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise row.error(f"column {column!r}: expected a list of messages, got {described(turns)}")
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str):
            raise row.error(
                f'message {number}: expected {{"role", "content"}} with a text, '
                f"got {described(turn)}"
            )
        if turn.get("role") not in _ROLES:
            raise row.error(
                f"message {number}: expected a role of {', '.join(_ROLES)}, "
                f"got {described(turn.get('role'))}"
            )
        row.require_unicode(turn["content"], f"message {number}")
        messages.append(Message(turn["role"], turn["content"]))
    if not any(m.role == "assistant" for m in messages):
        raise row.error("a chat without an assistant's turn has nothing to learn from")
    return Chat(tuple(messages))
