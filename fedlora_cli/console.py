"""Where the command line writes: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys

from rich.console import Console

__all__ = ["errors", "output", "print_json"]


def output() -> Console:
    """Standard output."""
    return Console()


def errors() -> Console:
    """Standard error: progress, notices, errors."""
    return Console(stderr=True)


def print_json(value: object) -> None:
    """Writes one JSON document for another program; flushed, as the reader may wait for it."""
    json.dump(value, sys.stdout, allow_nan=False)
    sys.stdout.write("\n")
    sys.stdout.flush()
