"""`fedlora workers --devices ...`: which devices of this machine get a worker, and its name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from fedlora.devices import Device, Devices, find, usable
from fedlora.errors import FedLoraError, Reason

__all__ = ["Place", "select_places", "worker_names"]

_ID_CHARACTERS = len("GPU-") + 8
"""of a UUID in a name: enough to tell a host's devices apart, and short enough to read"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one worker runs."""

    device: Device | None
    """None for the CPU"""
    index: int | None = None
    """of the device among those that this process may use, from 0; None for the CPU"""

    @property
    def worker_device(self) -> str:
        """The device as `worker.device` names it."""
        return f"cuda:{self.device.uuid}" if self.device else "cpu"


def select_places(
    wanted: str, devices: Devices, environ: Mapping[str, str] = os.environ
) -> tuple[Place, ...]:
    """One place for each worker.

    Args:
        wanted: "all" for every device, or a comma-separated list of numbers as nvidia-smi counts
            ("1"; "1:0" for instance 0 of the divided GPU 1), UUIDs (GPU-..., MIG-...) or their
            beginnings, and "cpu".
        devices: of this machine.
        environ: where CUDA_VISIBLE_DEVICES may leave this process only some of them.

    Raises:
        FedLoraError: DEVICE_UNAVAILABLE for a device that is not there, or if all are wanted and
            there is none; INVALID_CONFIG for an entry that is no device, or one named twice.
    """
    entries = [entry.strip() for entry in wanted.split(",") if entry.strip()]
    if not entries:
        raise FedLoraError(
            Reason.INVALID_CONFIG, "--devices names no device", hint="For example --devices 0,1"
        )
    there = () if set(entries) == {"cpu"} else usable(devices.present(), environ)
    if entries == ["all"]:
        if not there:
            raise FedLoraError(
                Reason.DEVICE_UNAVAILABLE,
                "--devices all: there is no NVIDIA GPU that this process may use",
                hint="Use --devices cpu",
            )
        return tuple(Place(device=d, index=i) for i, d in enumerate(there))
    places = tuple(_place(entry, there) for entry in entries)
    taken = Counter(place.device.uuid for place in places if place.device)
    if taken and max(taken.values()) > 1:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"--devices names a device twice: {wanted}",
            hint="Each worker needs a device of its own",
        )
    return places


def worker_names(prefix: str, places: tuple[Place, ...]) -> tuple[str, ...]:
    """A name for each worker, the same whenever the same device gets one: `node7-GPU-5c1f09ab`.

    Args:
        prefix: what tells this machine's workers from others', such as its name.
        places: where they run.
    """
    names: list[str] = []
    seen: Counter[str] = Counter()
    for place in places:
        own = place.device.uuid[:_ID_CHARACTERS] if place.device else "cpu"
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{prefix[:96]}-{own}").lstrip("-.")
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return tuple(names)


def _place(entry: str, there: tuple[Device, ...]) -> Place:
    if entry == "cpu":
        return Place(device=None)
    word = entry.removeprefix("cuda:")
    if not re.fullmatch(r"\d+(:\d+)?|(GPU|MIG)-[0-9A-Za-z/-]+", word):
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"--devices: expected all, cpu, a number or a UUID, got {entry!r}",
            hint="`nvidia-smi -L` lists what there is",
        )
    device = find(there, word)
    if device is None:
        listed = ", ".join(f"{d.number} ({d.uuid})" for d in there) or "none"
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"--devices: there is no device {entry}; this process may use {listed}",
            hint="`nvidia-smi -L` lists what there is, CUDA_VISIBLE_DEVICES what may be used",
        )
    return Place(device=device, index=there.index(device))
