"""Loads a configuration with the sections of whichever services are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedlora.config import Config, LocalWorkers, load_config
from fedlora.errors import FedLoraError, Reason

__all__ = ["load", "need_service", "section_types"]

_SECTIONS = {
    "data": ("client_worker.data.config", "DataConfig"),
    "worker": ("client_worker.config", "WorkerConfig"),
    "server": ("aggregator_service.config", "AggregatorConfig"),
}


def section_types() -> dict[str, type]:
    """Section name -> dataclass, for all services that are there."""
    types: dict[str, type] = {"workers": LocalWorkers}
    for section, (module, name) in _SECTIONS.items():
        if importlib.util.find_spec(module.partition(".")[0]):
            types[section] = getattr(importlib.import_module(module), name)
    return types


def load(
    file: Path | None, overrides: Sequence[str] = (), *, environ: Mapping[str, str] | None = None
) -> Config:
    """`fedlora.config.load_config` with every section that can be read here."""
    return load_config(file, services=section_types(), overrides=overrides, environ=environ)


def need_service(package: str, extra: str) -> None:
    """Raises MISSING_EXTRA unless a service's package is installed."""
    if importlib.util.find_spec(package) is None:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            f"the package {package} is not installed",
            hint=f"pip install 'fedlora[{extra}]'",
        )
