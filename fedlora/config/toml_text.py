"""Writes a configuration as TOML: the standard library reads it but does not write it."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterable
from pathlib import Path

from fedlora.config.load import ConfigEntry

__all__ = ["toml_text", "toml_value"]


def toml_text(entries: Iterable[ConfigEntry]) -> str:
    """Sections and keys in the order of the entries; a value that is unset (None) is left out."""
    lines: list[str] = []
    section = ""
    for entry in entries:
        if entry.value is None:
            continue
        if entry.section != section:
            section = entry.section
            lines += ["", f"[{section}]"]
        lines.append(f"{entry.key} = {toml_value(entry.value)}")
    return "\n".join(lines).lstrip() + "\n"


def toml_value(value: object) -> str:
    """One value in TOML's notation: boolean, integer, float, string, path, enumeration or list."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, enum.Enum):
        return toml_value(value.value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, str | Path):
        # JSON's escapes are TOML's, except that TOML wants DEL escaped too.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple | list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise TypeError(f"no TOML notation for {type(value).__name__}")
