"""Rows of a file or hub data set, each with its place for error messages, which never quote a row.

JSONL and CSV need nothing but the standard library; Parquet and the hub go through the `datasets`
package of the extra `data`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_worker.data.described import described, raised
from fedlora.errors import FedLoraError, Reason

__all__ = ["FILE_SUFFIXES", "Row", "read_hub_splits", "read_rows"]

FILE_SUFFIXES = (".jsonl", ".csv", ".parquet")
"""kinds of files"""

# A row wider than this is a broken file (a quote that never closes), not an example.
_MAX_CSV_FIELD_CHARACTERS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row, and where it stands: `train.jsonl, line 7`."""

    values: Mapping[str, Any]
    place: str
    columns_may_be_content: bool = False
    """they are the first line of a file, and it may have none of names"""

    def get(self, column: str) -> Any:
        """The value of a column.

        Raises:
            FedLoraError: INVALID_DATA naming the place, and the columns where they have names.
        """
        try:
            return self.values[column]
        except KeyError:
            raise self.error(
                f"no column {column!r} among its {len(self.values)}", self.how_to_name_columns
            ) from None

    @property
    def how_to_name_columns(self) -> str:
        """What helps against a missing column."""
        if self.columns_may_be_content:
            return "Name your columns in the section [data]; a .csv file's are its first line"
        columns = ", ".join(str(column) for column in self.values)
        return f"Columns: {columns}; name yours in the section [data]"

    def text(self, column: str) -> str:
        """The value of a column that must hold text; empty text is refused."""
        value = self.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.error(
                f"column {column!r}: expected a text that is not blank, got {described(value)}"
            )
        self.require_unicode(value, f"column {column!r}")
        return value

    def require_unicode(self, text: str, where: str) -> None:
        """Refuses text with half of a surrogate pair, which JSON can write and no tokenizer reads.

        Args:
            text: of the row.
            where: in the row it stands.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise self.error(
                f"{where}: expected Unicode text, got half of a surrogate pair",
                "An emoji was cut in two: write U+FFFD in its place, or leave the row out",
            ) from None

    def category(self, column: str) -> str:
        """The value of a column of labels or groups, as text: 3 and "3" are one label."""
        value = self.get(column)
        if value is None or value == "" or isinstance(value, list | dict | float):
            raise self.error(f"column {column!r}: expected a label, got {described(value)}")
        return str(value)

    def error(self, message: str, hint: str = "") -> FedLoraError:
        """INVALID_DATA at this row."""
        return FedLoraError(Reason.INVALID_DATA, f"{self.place}: {message}", hint=hint)


def read_rows(path: str) -> list[Row]:
    """All rows of a .jsonl, .csv or .parquet file.

    Raises:
        FedLoraError: INVALID_DATA for a file that is missing, empty, or broken at some line;
            MISSING_EXTRA for Parquet without the `datasets` package.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"data file {path!r} does not exist" if not file.exists() else f"{path!r} is no file",
            hint=f"Give a path that ends in {', '.join(FILE_SUFFIXES)}",
        )
    match file.suffix.lower():
        case ".jsonl":
            rows = list(_jsonl(file))
        case ".csv":
            rows = list(_csv(file))
        case ".parquet":
            rows = list(_parquet(file))
        case other:
            raise FedLoraError(
                Reason.INVALID_DATA,
                f"data file {path!r}: expected one of {', '.join(FILE_SUFFIXES)}, got {other!r}",
            )
    if not rows:
        raise FedLoraError(Reason.INVALID_DATA, f"data file {path!r} has no rows")
    return rows


def read_hub_splits(dataset_id: str) -> dict[str, list[Row]]:
    """The splits of a data set on the hub, by name.

    Raises:
        FedLoraError: MISSING_EXTRA without the `datasets` package, INVALID_DATA if the data set
            cannot be loaded.
    """
    package = _datasets(f"{dataset_id!r}, which is no file here and is read as a hub id,")
    try:
        loaded = package.load_dataset(dataset_id)
    except Exception as error:
        # Of whatever kind: a row that the package cannot convert is in the text of some.
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"{dataset_id!r} is no file here, and no data set that the hub gives: {raised(error)}",
            hint="Name a local file, or check the data set's id",
        ) from error
    return {str(s): list(_numbered(rows, f"{dataset_id}/{s}")) for s, rows in loaded.items()}


def _parquet(file: Path) -> Iterator[Row]:
    package = _datasets(f"the Parquet file {file.name!r}")
    try:
        loaded = package.load_dataset("parquet", data_files=str(file), split="train")
    except Exception as error:
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"{file.name!r} is no Parquet file that can be read: {raised(error)}",
        ) from error
    return _numbered(loaded, file.name)


def _jsonl(file: Path) -> Iterator[Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(_decoded(file, lines), start=1):
            place = f"{file.name}, line {number}"
            if not line.strip():
                continue
            try:
                values = json.loads(line.rstrip())
            except json.JSONDecodeError as error:
                raise FedLoraError(
                    Reason.INVALID_DATA,
                    f"{place}: not JSON at column {error.colno}: {error.msg}",
                    hint="Each line of a .jsonl file is one JSON object",
                ) from error
            if not isinstance(values, dict):
                raise FedLoraError(
                    Reason.INVALID_DATA, f"{place}: expected a JSON object, got {described(values)}"
                )
            yield Row(values, place)


def _csv(file: Path) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CSV_FIELD_CHARACTERS)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(_decoded(file, lines), strict=True)
        try:
            for values in reader:
                place = f"{file.name}, line {reader.line_num}"
                if None in values or None in values.values():
                    raise FedLoraError(
                        Reason.INVALID_DATA,
                        f"{place}: expected {len(reader.fieldnames or ())} fields "
                        "as in the first line",
                        hint="Quote fields that hold a comma or a line break",
                    )
                yield Row(values, place, columns_may_be_content=True)
        except csv.Error as error:
            # Of what was read in full; the row that is broken begins behind it.
            place = f"{file.name}, line {reader.line_num + 1}"
            raise FedLoraError(
                Reason.INVALID_DATA,
                f"{place}: {error}",
                hint='Write a quoted field as "...", and each quote within it twice',
            ) from error


def _decoded(file: Path, lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise FedLoraError(
            Reason.INVALID_DATA, f"{file.name}: not UTF-8 text", hint="Save the file as UTF-8"
        ) from error


def _numbered(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Row]:
    for number, values in enumerate(rows, start=1):
        yield Row(dict(values), f"{name}, row {number}")


def _datasets(wanted: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            f"{wanted} needs the package `datasets`",
            hint="Install it with: pip install 'fedlora[data]'; or use a .jsonl or .csv file",
        ) from error
    return datasets
