"""What a file with a worker's own adapter says of itself, in its safetensors metadata."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from fedlora.adapters.spec import AdapterSpec
from fedlora.errors import FedLoraError, Reason

__all__ = ["NOTE_KEY", "OwnNote", "note_in"]

NOTE_KEY = "fedlora_own"
"""name of the metadata that holds the note, as JSON"""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnNote:
    """Whose adapter a file holds, and when it became what it is."""

    run: str
    """name of the run"""
    worker: str
    round: int
    adapter_version: int
    """the published version that it lies over, or that it was trained from"""
    is_trained: bool
    """as it came out of a round's training; else a published version with what is the worker's own
    in it"""
    spec: AdapterSpec


def note_in(path: Path) -> str:
    """The note of a file, as JSON.

    Raises:
        FedLoraError: INVALID_PAYLOAD for a file that is damaged or has none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            note = (file.metadata() or {}).get(NOTE_KEY)
    except SafetensorError as error:
        raise FedLoraError(Reason.INVALID_PAYLOAD, f"{str(path)!r}: {error}") from error
    if note is None:
        raise FedLoraError(
            Reason.INVALID_PAYLOAD,
            f"{str(path)!r}: expected the metadata {NOTE_KEY}, which a worker writes, got none",
        )
    return str(note)
