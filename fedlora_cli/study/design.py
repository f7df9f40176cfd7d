"""STUDY.toml: which federations a study compares.

    [study]                          what it asks, on which configuration, with which seeds
    [settings.rounds]                keys of that configuration, the same in every cell
    [variants.flora_na.method]       keys of one variant
    [[grid]]                         variants, and values that are varied beside them

Every file is checked whole before anything runs. A seed is the run's and the partition's: other
data for each worker, another first adapter, another order of examples. Variants are paired by it.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.study.metric_names import misspelt

__all__ = ["Condition", "Study", "read_study"]

Settings = Mapping[str, Any]
"""dotted key of a configuration -> value"""

_CLIENTS = ("workers.count", "rounds.min_workers", "rounds.quorum", "data.partition.num_slots")
"""keys that the short word "clients" stands for"""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""of a variant: folders of its cells are named after it"""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Reach(_Table):
    metric: str
    levels: tuple[float, ...]


class _StudyTable(_Table):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    title: str
    question: str = ""
    config: Path
    seeds: tuple[int, ...] = Field(min_length=1)
    baseline: str
    metrics: tuple[str, ...] = Field(min_length=1)
    reach: _Reach | None = None


class _Grid(_Table):
    variants: tuple[str, ...] = ()
    vary: dict[str, list[Any]] = {}


class _File(_Table):
    study: _StudyTable
    settings: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    grid: tuple[_Grid, ...] = (_Grid(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One variant with one choice of what is varied; a cell is a condition with a seed."""

    variant: str
    varied: Settings
    """as written, so "clients" is still that"""
    settings: Settings
    """all keys that differ from the study's configuration"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study, read and checked."""

    name: str
    title: str
    question: str
    config: Path
    """configuration that every cell starts from"""
    seeds: tuple[int, ...]
    baseline: str
    """variant that the others are compared with"""
    metrics: tuple[str, ...]
    """of a cell's last round; the first one is tested for significance"""
    reach_metric: str = ""
    reach_levels: tuple[float, ...] = ()
    """how many bytes, until the metric is first that high"""
    conditions: tuple[Condition, ...]


def read_study(file: Path) -> Study:
    """The study that a file describes.

    Raises:
        FedLoraError: INVALID_CONFIG naming the file and the key.
    """
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        read = _File.model_validate(tree)
    except OSError as error:
        raise _invalid(file, error.strerror or str(error)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(file, f"no TOML: {error}") from None
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise _invalid(file, "; ".join(faults)) from None
    table = read.study
    if wrong := [name for name in read.variants if not _NAME.fullmatch(name)]:
        raise _invalid(file, f"variant {wrong[0]!r}: expected letters, digits, '_' and '-'")
    unknown = {table.baseline, *itertools.chain(*(g.variants for g in read.grid))} - {
        *read.variants
    }
    if unknown:
        raise _invalid(
            file,
            f"there is no variant {sorted(unknown)[0]!r}; there are: {', '.join(read.variants)}",
        )
    if len({*table.seeds}) < len(table.seeds):
        raise _invalid(file, f"study.seeds has one twice: {list(table.seeds)}")
    for metric in (*table.metrics, *([table.reach.metric] if table.reach else [])):
        if meant := misspelt(metric):
            raise _invalid(file, f"no cell measures {metric!r}; did you mean {meant!r}?")
    return Study(
        name=table.name,
        title=table.title,
        question=" ".join(table.question.split()),
        config=(file.parent / table.config).resolve(),
        seeds=table.seeds,
        baseline=table.baseline,
        metrics=table.metrics,
        reach_metric=table.reach.metric if table.reach else "",
        reach_levels=table.reach.levels if table.reach else (),
        conditions=tuple(_conditions(read)),
    )


def _conditions(read: _File) -> Iterator[Condition]:
    shared = dict(_flat(read.settings))
    seen = []
    for grid in read.grid:
        for values in itertools.product(*grid.vary.values()):
            varied = dict(zip(grid.vary, values, strict=True))
            for name in grid.variants or read.variants:
                settings = shared | dict(_flat(read.variants[name]))
                for key, value in varied.items():
                    settings |= _written_out(key, value)
                condition = Condition(variant=name, varied=varied, settings=settings)
                if condition not in seen:
                    seen.append(condition)
                    yield condition


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield from _written_out(f"{prefix}{key}", value).items()


def _written_out(key: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(_CLIENTS, value) if key == "clients" else {key: value}


def _invalid(file: Path, what: str) -> FedLoraError:
    return FedLoraError(
        Reason.INVALID_CONFIG, f"{file}: {what}", hint="docs/studies.md explains the file"
    )
