"""Packages of other people, as an installer leaves them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["install"]


def install(folder: Path, entries: dict[str, dict[str, str]]) -> None:
    """A distribution with entry points: what is in a wheel, in a folder that is put on the path.

    Args:
        folder: to be made.
        entries: objects by name, by group.
    """
    info = folder / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [
        line
        for group, rows in entries.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in rows.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
