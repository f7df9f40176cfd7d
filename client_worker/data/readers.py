"""Readers of other packages: how a row of theirs becomes an example.

What a run trains for is one of two things, a label of a text or the next token. A task of one's own
- pairs of sentences, questions with passages, a prompt of one's own wording - is one of these once
each row has been put into words, and that is what a reader does (docs/extending.md).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from client_worker.data.described import described, raised
from client_worker.data.examples import Example, LabelledText
from client_worker.data.rows import Row
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.installed import READERS_GROUP, installed

__all__ = ["Reader", "read_examples"]


class Reader(Protocol):
    """A frozen dataclass without options, known by the entry point of its name."""

    name: ClassVar[str]

    def example(self, row: Mapping[str, Any], labels: Sequence[str]) -> Example:
        """The example of one row.

        Args:
            row: values by column.
            labels: of the run, in the order of the head's outputs; empty for causal_lm.

        Returns:
            For sequence_classification a LabelledText, for causal_lm one of the others.

        Raises:
            Exception: whatever is wrong with the row. Its kind is told, where it was raised and the
                row's place; its text, which may quote the row, is not.
        """
        ...


def read_examples(
    rows: Sequence[Row], name: str, task: TaskType, labels: Sequence[str]
) -> list[Example]:
    """The examples that a reader makes, one for each row.

    Raises:
        FedLoraError: INVALID_CONFIG for a reader that is not installed or cannot be loaded;
            INVALID_DATA at the first row of which it makes no example of the task.
    """
    reader = _reader(name)
    return [_checked(reader, row, task, labels) for row in rows]


def _reader(name: str) -> Any:
    found = installed(READERS_GROUP)
    if name in found.broken:
        raise found.broken[name]
    if name not in found.rows:
        near = difflib.get_close_matches(name, found.rows, n=1)
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"data.reader: no package here brings a reader {name!r}",
            hint=f"Did you mean {near[0]!r}?" if near else "See docs/extending.md",
        )
    return found.rows[name]


def _checked(reader: Any, row: Row, task: TaskType, labels: Sequence[str]) -> Example:
    try:
        # The reader is another's: whatever it raises is said of the row.
        example = reader.example(row.values, labels)
    except Exception as error:
        raise row.error(f"the reader {reader.name!r} failed: {raised(error)}") from error
    if not isinstance(example, Example) or (
        isinstance(example, LabelledText) is not (task is TaskType.SEQUENCE_CLASSIFICATION)
    ):
        raise row.error(
            f"the reader {reader.name!r} made {type(example).__name__}, which is no example for "
            f"{task.value}",
            "Return a LabelledText for sequence_classification; Completion, PlainText or Chat for "
            "causal_lm",
        )
    if isinstance(example, LabelledText) and example.label not in range(len(labels)):
        raise row.error(
            f"the reader {reader.name!r} gave another label ({described(example.label)}), expected "
            f"a number from 0 to {len(labels) - 1}",
            "Return the place of the label in `labels`",
        )
    return example
