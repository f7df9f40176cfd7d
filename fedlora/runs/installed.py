"""What other installed packages bring: rows for fedlora's tables, found by their entry points.

    [project.entry-points."fedlora.plugins"]
    ridge = "my_package:Ridge"

An entry point names a frozen dataclass of options whose `name` is the entry's. One that cannot be
loaded is an error of whoever asks for it by name, and of nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from fedlora.errors import FedLoraError, Reason

__all__ = [
    "METHODS_GROUP",
    "PLUGINS_GROUP",
    "READERS_GROUP",
    "SAMPLERS_GROUP",
    "Installed",
    "installed",
]

METHODS_GROUP = "fedlora.methods"
"""aggregation methods, and the rules around them"""

PLUGINS_GROUP = "fedlora.plugins"

READERS_GROUP = "fedlora.readers"
"""what makes examples of a worker's rows"""

SAMPLERS_GROUP = "fedlora.samplers"
"""which workers a round takes, where it does not take all"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The entry points of one group."""

    rows: Mapping[str, object]
    """by name, each with its options' defaults"""
    broken: Mapping[str, FedLoraError]
    """by name: why an entry could not be loaded"""


def installed(group: str) -> Installed:
    """All entry points of a group that are installed here, sorted by name."""
    rows: dict[str, object] = {}
    broken: dict[str, FedLoraError] = {}
    for entry in sorted(entry_points(group=group), key=lambda e: e.name):
        try:
            rows[entry.name] = _loaded(entry)
        except FedLoraError as error:
            broken[entry.name] = error
    return Installed(rows=rows, broken=broken)


def _loaded(entry: EntryPoint) -> object:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
    what = f"{entry.group} {entry.name!r} of {package} ({entry.value})"
    try:
        # The module is another's: whatever it raises is its fault.
        row: object = entry.load()()
    except Exception as error:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"{what} cannot be loaded: {type(error).__name__}: {error}",
            hint="Correct or uninstall that package (docs/extending.md)",
        ) from error
    if (name := getattr(row, "name", None)) != entry.name:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"{what} calls itself {name!r}; expected the entry's name",
            hint="Give the entry point and the class one name (docs/extending.md)",
        )
    return row
