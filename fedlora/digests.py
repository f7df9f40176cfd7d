"""The digest that names payloads: on the wire, in the store, in a worker's cache.

BLAKE3, because every byte of every adapter is hashed once on either side: 0.22 CPU-s/GB where
OpenSSL's SHA-256 takes 0.56 with the processor's own instructions for it (measured). Like it, it
withstands collisions that are looked for, which a checksum does not.
"""

from __future__ import annotations

import re
import sys
from typing import BinaryIO, Protocol

from blake3 import blake3

__all__ = ["DIGEST_BYTES", "DIGEST_NAME", "Digest", "digest_file", "is_digest", "new_digest"]

DIGEST_NAME = "BLAKE3"
DIGEST_BYTES = 32

_BLOCK_BYTES = 1024**2
_TEXT = re.compile(r"[0-9a-f]{64}")


class Digest(Protocol):
    """A digest under way."""

    def update(self, data: bytes | bytearray | memoryview, /) -> object:
        """Takes the next bytes."""

    def digest(self) -> bytes:
        """Of all bytes so far: DIGEST_BYTES bytes."""

    def hexdigest(self) -> str:
        """The same, in lower-case hexadecimal."""


def new_digest(data: bytes | bytearray | memoryview = b"") -> Digest:
    """A digest that has taken `data`."""
    digest: Digest = blake3(data)
    return digest


def digest_file(file: BinaryIO, num_bytes: int | None = None) -> Digest:
    """A digest that has taken a file from where it stands: so many bytes, or all to its end."""
    digest, left = new_digest(), sys.maxsize if num_bytes is None else num_bytes
    while data := file.read(min(_BLOCK_BYTES, left)):
        digest.update(data)
        left -= len(data)
    return digest


def is_digest(text: str) -> bool:
    """Whether a string is a digest in hexadecimal."""
    return _TEXT.fullmatch(text) is not None
