"""A cell: one federation of a study, and the key under which its result is kept.

The key is a digest of what decides the result: the keys of the configuration that are written, and
the contents of the data files and of a base model's folder. Where they are the same, a cell is not
run again, whatever it is called and wherever its files lie. Defaults are left out, so that a new
key does not make old results worthless; each result says which version it was made with.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from fedlora.config import Config, OriginKind, toml_value
from fedlora.digests import digest_file, new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora_cli.configuration import load
from fedlora_cli.run_folder import decides
from fedlora_cli.study.design import Condition, Study

__all__ = ["Cell", "cells_of"]

_NAMES = {"run.name"}
_PLACES = {"data.path", "data.test_path", "model.base"}
_WORKERS = {"workers.count", "workers.max_ranks", "workers.server_data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One federation."""

    condition: Condition
    seed: int
    key: str
    overrides: tuple[str, ...]
    """what `fedlora run CONFIG --set` needs for the same federation over gRPC"""
    num_rounds: int

    @property
    def label(self) -> str:
        """For people: the variant, what is varied, the seed."""
        varied = [f"{k.rpartition('.')[2]} {v}" for k, v in self.condition.varied.items()]
        return ", ".join([self.condition.variant, *varied, f"seed {self.seed}"])

    @property
    def run_name(self) -> str:
        """A name for its run and folder."""
        return f"{self.condition.variant[:32]}-s{self.seed}-{self.key[:12]}"


def cells_of(study: Study) -> tuple[Cell, ...]:
    """All cells, every one's configuration checked; by seed, so that a part is paired, too.

    Raises:
        FedLoraError: INVALID_CONFIG and the like, with the cell's name, for a configuration that
            cannot be run.
    """
    digests: dict[str, str] = {}
    # Of one key several: each has its place in a table, and `fedlora study` runs one of them.
    return tuple(
        _cell(study, condition, seed, digests)
        for seed in study.seeds
        for condition in study.conditions
    )


def _cell(study: Study, condition: Condition, seed: int, digests: dict[str, str]) -> Cell:
    settings = [f"{name}={toml_value(value)}" for name, value in condition.settings.items()]
    overrides = [*settings, f"run.seed={seed}"]
    try:
        if load(study.config, overrides, environ={}).need_run().partition is not None:
            overrides.append(f"data.partition.seed={seed}")
        config = load(study.config, overrides, environ={})
        _check(config)
    except FedLoraError as error:
        raise FedLoraError(
            error.reason, f"variant {condition.variant!r}: {error.message}", hint=error.hint
        ) from None
    return Cell(
        condition=condition,
        seed=seed,
        key=_key(config, digests),
        overrides=tuple(overrides),
        num_rounds=config.need_run().rounds.num_rounds,
    )


def _check(config: Config) -> None:
    """Raises what the server and the command line would, before anything runs."""
    from aggregator_service.new_run import checked_recipe
    from fedlora_cli.local_federation import check_workers

    workers, spec = check_workers(config), config.need_run()
    recipe = checked_recipe(spec, has_base_weights=False)
    ranks = [workers.max_rank_of(index) or spec.adapter.r for index in range(workers.count)]
    if min(ranks) < spec.adapter.r and not recipe.takes_mixed_ranks:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"workers.max_ranks has {min(ranks)}, and {recipe.method.name} as configured "
            f"needs rank {spec.adapter.r} of every worker",
            hint="Leave workers.max_ranks out, or run a method that takes mixed ranks",
        )


def _key(config: Config, digests: dict[str, str]) -> str:
    values = {
        entry.name: entry.value
        for entry in config.entries
        if entry.origin.kind is not OriginKind.DEFAULT
        and (decides(entry) or entry.name in _WORKERS)
        and entry.name not in _NAMES
    }
    for place in _PLACES & values.keys():
        values[place] = _contents(str(values[place]), digests)
    text = json.dumps({k: str(v) for k, v in sorted(values.items())})
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _contents(place: str, digests: dict[str, str]) -> str:
    """The digest of a file or of a folder's files, or the name of something that is neither."""
    path = Path(place).expanduser()
    if place and path.exists() and place not in digests:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            names = {str(file.relative_to(path)): _digest_of(file) for file in files}
            digests[place] = new_digest(json.dumps(names).encode()).hexdigest()
        else:
            digests[place] = _digest_of(path)
    return digests.get(place, place)


def _digest_of(file: Path) -> str:
    with file.open("rb") as opened:
        return digest_file(opened).hexdigest()
