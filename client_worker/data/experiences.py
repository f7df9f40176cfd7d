"""Which experience of a continual run each example belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from client_worker.data.described import described
from client_worker.data.examples import Example, LabelledText
from client_worker.data.rows import Row
from fedlora.errors import FedLoraError
from fedlora.runs.continual import ContinualSpec

__all__ = ["with_experiences"]


def with_experiences(
    examples: Sequence[Example],
    rows: Sequence[Row],
    stream: ContinualSpec | None,
    labels: Sequence[str],
) -> list[Example]:
    """The same examples, each with its experience; as they are where the run has no stream.

    Args:
        examples: one for each row.
        rows: where they come from; read for the stream's column, if it has one.
        stream: of the run.
        labels: of the run, in the order of the head's outputs.

    Raises:
        FedLoraError: INVALID_DATA at the first row without the column, or with a value of it that
            never joins.
    """
    if stream is None:
        return list(examples)
    of_value = stream.experience_of()
    return [
        replace(example, experience=_experience(example, row, stream, of_value, labels))
        for example, row in zip(examples, rows, strict=True)
    ]


def _experience(
    example: Example,
    row: Row,
    stream: ContinualSpec,
    of_value: dict[str, int],
    labels: Sequence[str],
) -> int:
    if isinstance(example, LabelledText) and stream.by_label:
        return of_value[labels[example.label]]
    value = row.category(stream.column)
    if value not in of_value:
        raise _never_joins(row, value, stream)
    return of_value[value]


def _never_joins(row: Row, value: str, stream: ContinualSpec) -> FedLoraError:
    return row.error(
        f"column {stream.column!r}: expected one of the {len(stream.order)} values of "
        f"continual.order, got {described(value)}",
        "List every value of the column in continual.order, or leave such rows out of the data",
    )
