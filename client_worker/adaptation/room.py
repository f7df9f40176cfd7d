"""The largest rank that a device has room for, found before any weight is loaded.

Rule    rank = share (free - base) / (16 Q), rounded down to a power of two, and at least 1

        base  bytes of the base model: 4 a number in float32, about half a byte in 4 bits
        Q     numbers of one component of A and B in all adapted layers, sum of (in + out); 16 bytes
              each: value, gradient and AdamW's two moments, all in float32
        share a quarter: what else the base model leaves free is for activations, whose size depends
              on the batch and is not estimated

Free memory is never twice the same, and a worker that comes back with another rank would have to
begin its private parts anew; powers of two lie far enough apart for it to come back with the same.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from client_worker.adaptation.attach import numbers_per_rank
from client_worker.adaptation.base_model import outline
from client_worker.adaptation.quantise import BITS, quantised_layers
from fedlora.adapters.spec import AdapterSpec, Quantization

__all__ = ["base_bytes", "fitting_rank", "largest_rank"]

_SHARE = 0.25
_FLOAT_BYTES = 4
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
    # Before the adapter is attached to it.
    base = base_bytes(model, spec)
    return largest_rank(free_bytes, base, numbers_per_rank(model, spec))


def base_bytes(model: nn.Module, spec: AdapterSpec) -> int:
    """What the base model takes once it is loaded.

    Args:
        model: its outline.
        spec: says whether it is held in 4 bits.
    """
    numbers, bits = sum(p.numel() for p in model.parameters()), 0.0
    if spec.base_model.quantization is Quantization.NF4:
        layers = quantised_layers(model, trained=spec.modules_to_save).values()
        small = sum(layer.weight.numel() for layer in layers)
        numbers, bits = numbers - small, BITS * small
    return _FLOAT_BYTES * numbers + round(bits / 8)


def largest_rank(free_bytes: int, base: int, per_rank: int) -> int:
    """The rule above.

    Args:
        free_bytes: before anything is loaded.
        base: bytes of the base model.
        per_rank: Q.
    """
    rank = max(1, int(_SHARE * (free_bytes - base) / (_TRAINED_BYTES * per_rank)))
    return 1 << (rank.bit_length() - 1)
