"""Seeds that depend on what they are for, and on nothing else."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*purpose: object) -> int:
    """A seed in [0, 2^63) for a purpose such as ``(run seed, round, "train", worker)``.

    Equal purposes give equal seeds on every machine, different ones independent seeds.
    """
    text = "\x1f".join(str(part) for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
