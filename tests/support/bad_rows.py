"""Data files with something wrong in a row, and what is private in that row.

`SECRET` stands wherever a row has content: in values, in keys within them, in the first line of a
.csv file without names of columns. The names of columns are the owner's, and told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_worker.data.config import DataConfig
from fedlora.adapters.spec import TaskType
from fedlora.runs.continual import ContinualSpec

__all__ = ["BAD_ROWS", "LABELS", "READER", "READER_MODULE", "SECRET", "STREAM", "BadRow"]

SECRET = "janedoehivpositive"

LABELS = ("no", "yes")

STREAM = ContinualSpec(order=("nl", "fr"), sizes=(1, 1), rounds_per_experience=1, column="language")
"""of a causal language model's run"""

READER = "quoting"
"""a reader whose exceptions quote the row"""


READER_MODULE = f"""
class Quoting:
    name = "{READER}"

    def example(self, row, labels):
        raise ValueError(f"cannot read {{row}}")
"""
"""`Quoting`, its source"""


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A file with one."""

    name: str
    task: TaskType
    text: str
    said: str
    """a part of the message that says where the row is, or what was expected"""
    suffix: str = ".jsonl"
    encoding: str = "utf-8"
    settings: dict[str, Any] = field(default_factory=dict)
    """of `DataConfig`"""

    def config(self, folder: Path) -> DataConfig:
        """Writes the file into a folder."""
        path = folder / f"{self.name}{self.suffix}"
        path.write_text(self.text, encoding=self.encoding)
        return DataConfig(path=str(path), **self.settings)


def _jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


_LABELLED = {"text": "a b", "label": "no"}


def _label(name: str, row: dict[str, object], said: str, **more: Any) -> BadRow:
    text = _jsonl(_LABELLED, {**_LABELLED, **row})
    return _of_labels(name, text, f"line 2: {said}", **more)


def _of_labels(name: str, text: str, said: str, **more: Any) -> BadRow:
    task = TaskType.SEQUENCE_CLASSIFICATION
    return BadRow(name=name, task=task, text=text, said=said, **more)


def _text(name: str, row: dict[str, object], said: str) -> BadRow:
    return BadRow(name=name, task=TaskType.CAUSAL_LM, text=_jsonl(row), said=f"line 1: {said}")


def _chat(name: str, messages: object, said: str) -> BadRow:
    return _text(name, {"messages": messages, "language": "nl"}, said)


BAD_ROWS = (
    _of_labels("no-object", _jsonl(_LABELLED, SECRET), "line 2: expected a JSON object"),
    _of_labels("no-json", f'{{"text": "{SECRET}"\n', "line 1: not JSON at column"),
    _of_labels("no-escape", f'{{"text": "{SECRET}\\x"}}\n', "line 1: not JSON at column"),
    _of_labels("control", f'{{"text": "{SECRET}\t"}}\n', "line 1: not JSON at column"),
    _of_labels("latin", f'{{"text": "{SECRET} é"}}\n', "not UTF-8 text", encoding="latin-1"),
    _of_labels("fields", f"text,label\na,no\n{SECRET},no,x\n", "line 3: exp", suffix=".csv"),
    _of_labels("quote", f'text,label\n"{SECRET}"x,no\n', "line 2: ',' expected", suffix=".csv"),
    _of_labels("open", f'text,label\n"{SECRET},no\n', "unexpected end of data", suffix=".csv"),
    _of_labels("headless", f"{SECRET},no\na,yes\n", "line 2: no column 'text'", suffix=".csv"),
    _of_labels("near", f"{SECRET},txt\na,yes\n", "line 2: no column 'text'", suffix=".csv"),
    _of_labels("key", _jsonl({"body": SECRET}), "line 1: no column 'text' among its 1"),
    _label("text-list", {"text": [SECRET]}, "column 'text': expected a text"),
    _label("text-half", {"text": f"{SECRET} \ud83d"}, "column 'text': expected Unicode text"),
    _label("text-dict", {"text": {SECRET: SECRET}}, "column 'text': expected a text"),
    _label("label-list", {"label": [SECRET]}, "column 'label': expected a label"),
    _label("label-dict", {"label": {"of": SECRET}}, "column 'label': expected a label"),
    _label("label", {"label": SECRET}, "column 'label': expected one of the run's 2 labels"),
    _label("label-near", {"label": f"yes {SECRET}"}, "column 'label': expected one of"),
    _of_labels(
        "split",
        _jsonl(_LABELLED, {**_LABELLED, "text": SECRET}),
        "expected rows with 'text' = 'test', got 2 rows with 2 other values",
        settings={"split_column": "text"},
    ),
    _of_labels(
        "reader",
        _jsonl({**_LABELLED, "text": SECRET}),
        f"line 1: the reader '{READER}' failed: ValueError at quoting.py, line 6",
        settings={"reader": READER},
    ),
    _chat("chat-text", f"Patient {SECRET}", "column 'messages': expected a list of messages"),
    _chat("chat-dict", {"role": SECRET}, "column 'messages': expected a list of messages"),
    _chat("turn-text", [SECRET], "message 1: expected"),
    _chat("turn-list", [{"role": "user", "content": [{"text": SECRET}]}], "message 1: expected"),
    _chat("turn-bare", [{"role": "user", "text": SECRET}], "message 1: expected"),
    _chat("turn-half", [{"role": "user", "content": f"{SECRET}\ude00"}], "message 1: expected Uni"),
    _chat("role", [{"role": SECRET, "content": SECRET}], "message 1: expected a role of"),
    _chat("unanswered", [{"role": "user", "content": SECRET}], "a chat without an assistant"),
    _text("prompt", {"prompt": [SECRET], "completion": "a"}, "column 'prompt': expected a text"),
    _text("answer", {"prompt": "a", "completion": {SECRET: 1}}, "column 'completion': expected"),
    _text("columns", {"body": SECRET}, "expected a column 'messages', or 'prompt'"),
    _text("stream", {"text": "a", "language": SECRET}, "column 'language': expected one of the 2"),
    _text("stream-list", {"text": "a", "language": [SECRET]}, "column 'language': expected"),
)
