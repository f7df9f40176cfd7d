"""What error messages say of a row's content: its kind and its length, never what it is.

Messages end in logs, and logs are kept and shipped. What others have written into an exception is
not ours to judge, and libraries like to quote what they could not read: of it only the kind is
said, and where it was raised.
"""

from __future__ import annotations

import traceback
from collections.abc import Sized
from pathlib import Path

__all__ = ["described", "raised"]


def described(value: object) -> str:
    """The type of a value out of a row, and its length if it has one: `str of length 29`."""
    kind = type(value).__name__
    return f"{kind} of length {len(value)}" if isinstance(value, Sized) else kind


def raised(error: Exception) -> str:
    """An exception of another package's code: `ValueError at my_pairs.py, line 14`."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
