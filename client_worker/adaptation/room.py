"""The largest rank that a device has room for, found before any weight is loaded.

Rule    rank = share (free - 4 P) / (16 Q), rounded down to a power of two, and at least 1

        P     numbers of the base model, 4 bytes each in float32
        Q     numbers of one component of A and B in all adapted layers, sum of (in + out); 16 bytes
              each: value, gradient and AdamW's two moments, all in float32
        share a quarter: what else the base model leaves free is for activations, whose size depends
              on the batch and is not estimated

Free memory is never twice the same, and a worker that comes back with another rank would have to
begin its private parts anew; powers of two lie far enough apart for it to come back with the same.
"""

from __future__ import annotations

from pathlib import Path

from client_worker.adaptation.attach import numbers_per_rank
from client_worker.adaptation.base_model import outline
from fedlora.adapters.spec import AdapterSpec

__all__ = ["fitting_rank", "largest_rank"]

_SHARE = 0.25
_BASE_BYTES = 4
_TRAINED_BYTES = 16


def fitting_rank(spec: AdapterSpec, free_bytes: int, *, hub_cache: Path | None = None) -> int:
    """The largest rank at which a run's adapter fits.

    Args:
        spec: the run's adapter.
        free_bytes: of the device, before anything is loaded.
        hub_cache: folder for downloads; None for the usual one.

    Raises:
        FedLoraError: INVALID_MODEL for a base model that cannot be described, or that the adapter
            does not fit.
    """
    model = outline(spec, hub_cache=hub_cache)
    num_base = sum(parameter.numel() for parameter in model.parameters())
    return largest_rank(free_bytes, num_base=num_base, per_rank=numbers_per_rank(model, spec))


def largest_rank(free_bytes: int, *, num_base: int, per_rank: int) -> int:
    """The rule above.

    Args:
        free_bytes: before anything is loaded.
        num_base: P.
        per_rank: Q.
    """
    room = _SHARE * (free_bytes - _BASE_BYTES * num_base)
    rank = max(1, int(room / (_TRAINED_BYTES * per_rank)))
    return 1 << (rank.bit_length() - 1)
