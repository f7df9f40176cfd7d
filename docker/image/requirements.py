"""Prints what one image installs: the dependencies of pyproject.toml and of some of its extras.

    python requirements.py aggregator tracking < pyproject.toml > requirements.txt

An image carries the dependencies but not the distribution: its code is the two packages that the
Dockerfile copies.
"""

from __future__ import annotations

import sys
import tomllib

__all__ = ["requirements"]


def requirements(pyproject: str, *wanted: str) -> list[str]:
    """The requirement lines of the distribution with extras.

    Args:
        pyproject: text of pyproject.toml.
        wanted: keys of [project.optional-dependencies].

    Raises:
        SystemExit: there is no such extra.
    """
    project = tomllib.loads(pyproject)["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    for extra in wanted:
        if extra not in extras:
            raise SystemExit(f"pyproject.toml has no extra {extra!r}; it has {', '.join(extras)}")
    return [*project["dependencies"], *(line for extra in wanted for line in extras[extra])]


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("usage: requirements.py EXTRA... < pyproject.toml")
    sys.stdout.write("\n".join(requirements(sys.stdin.read(), *sys.argv[1:])) + "\n")
