"""A worker's three sets of examples: to train on, held out, and the shared test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client_worker.data.config import DataConfig
from client_worker.data.examples import Example, to_examples
from client_worker.data.experiences import with_experiences
from client_worker.data.held_out import split_held_out
from client_worker.data.partition import partition
from client_worker.data.readers import read_examples
from client_worker.data.rows import FILE_SUFFIXES, Row, read_hub_splits, read_rows
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.partition import PartitionScheme, PartitionSpec
from fedlora.runs.seeds import derive_seed
from fedlora.runs.tasks import DataSlot

__all__ = ["LocalData", "load_local_data"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalData:
    """What one worker has."""

    train: tuple[Example, ...]
    """at least one"""
    held_out: tuple[Example, ...]
    """the worker's own, never trained on"""
    test: tuple[Example, ...]
    """the same for all workers of an experiment; empty where the data has none"""


def load_local_data(
    config: DataConfig,
    *,
    task: TaskType,
    labels: Sequence[str],
    slot: DataSlot | None,
    seed: int,
    stream: ContinualSpec | None = None,
) -> LocalData:
    """Reads, splits and checks a worker's examples.

    Only training rows are partitioned; the test rows are whole on every worker.

    Args:
        config: the files and columns.
        task: decides the kind of example.
        labels: of the run; empty for causal_lm.
        slot: the part that is this worker's; None where all of it is.
        seed: of the choice of held-out and of public rows.
        stream: of a continual run: says which experience each example belongs to.

    Raises:
        FedLoraError: INVALID_DATA, INVALID_CONFIG or MISSING_EXTRA.
    """
    train_rows, test_rows = _read(config)
    if not train_rows:
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"{config.path!r} has no training rows: all have "
            f"{config.split_column!r} = {config.test_split!r}",
            hint="Correct data.split_column or data.test_split",
        )
    train_rows = _of_our_side(train_rows, config, seed)
    if slot is not None:
        parts = partition(slot.partition, _partition_keys(slot.partition, config, train_rows))
        train_rows = [train_rows[i] for i in parts[slot.index]]
    if config.max_examples:
        train_rows = train_rows[: config.max_examples]
    examples = _examples(train_rows, config, task, labels, stream)
    train, held_out = split_held_out(
        _strata(train_rows, config), config.held_out_fraction, seed=seed
    )
    return LocalData(
        train=tuple(examples[i] for i in train),
        held_out=tuple(examples[i] for i in held_out),
        test=tuple(_examples(test_rows, config, task, labels, stream)) if test_rows else (),
    )


def _examples(
    rows: Sequence[Row],
    config: DataConfig,
    task: TaskType,
    labels: Sequence[str],
    stream: ContinualSpec | None,
) -> list[Example]:
    if config.reader:
        examples = read_examples(rows, config.reader, task, labels)
    else:
        examples = to_examples(rows, config, task, labels)
    return with_experiences(examples, rows, stream, labels)


def _of_our_side(rows: list[Row], config: DataConfig, seed: int) -> list[Row]:
    """The public rows or the others: the same on every worker, with labels as in the whole."""
    parties, public = split_held_out(
        _strata(rows, config), config.public_fraction, seed=derive_seed(seed, "public")
    )
    return [rows[i] for i in (public if config.only_public else parties)]


def _strata(rows: Sequence[Row], config: DataConfig) -> list[str]:
    return [str(row.values.get(config.label_column, "")) for row in rows]


def _read(config: DataConfig) -> tuple[list[Row], list[Row]]:
    """Training rows and test rows."""
    hub = _is_hub_id(config.path)
    splits = read_hub_splits(config.path) if hub else {"train": read_rows(config.path)}
    if config.split_column:
        rows = [row for split in splits.values() for row in split]
        values = [str(row.get(config.split_column)) for row in rows]
        if config.test_split not in values:
            raise FedLoraError(
                Reason.INVALID_DATA,
                f"{config.path!r}: expected rows with {config.split_column!r} = "
                f"{config.test_split!r}, got {len(values)} rows with {len(set(values))} other "
                "values",
                hint="Set data.test_split to the value that marks test rows",
            )
        marked = list(zip(rows, values, strict=True))
        return (
            [row for row, value in marked if value != config.test_split],
            [row for row, value in marked if value == config.test_split],
        )
    if "train" not in splits:
        raise FedLoraError(
            Reason.INVALID_DATA,
            f"data set {config.path!r} has no split 'train', only {', '.join(splits)}",
        )
    test = read_rows(config.test_path) if config.test_path else splits.get(config.test_split, [])
    return splits["train"], test


def _is_hub_id(path: str) -> bool:
    file = Path(path).expanduser()
    return not file.exists() and file.suffix.lower() not in FILE_SUFFIXES


def _partition_keys(spec: PartitionSpec, config: DataConfig, rows: Sequence[Row]) -> list[str]:
    """What the partition goes by: a label, a group, or nothing but the number of rows."""
    match spec.scheme:
        case PartitionScheme.IID:
            return [""] * len(rows)
        case PartitionScheme.COLUMN:
            return [row.category(spec.column) for row in rows]
        case PartitionScheme.DIRICHLET:
            if config.label_column not in rows[0].values:
                raise rows[0].error(
                    f'partition.scheme "dirichlet" goes by label, and there is no column '
                    f"{config.label_column!r}",
                    'Name the column in data.label_column, or use the scheme "iid" or "column"',
                )
            return [row.category(config.label_column) for row in rows]
