"""What fedlora asks of a machine's CUDA devices, and how people name them.

A device is a whole GPU, or an instance of a GPU that is divided (MIG); CUDA gives a process either
as one device. Numbers are those of nvidia-smi, in the order of the PCI bus. They may change with
every boot, so what lasts is the UUID.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["VISIBLE", "Device", "Devices", "Reading", "find", "usable"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""the variable from which CUDA learns, at its first call, which devices a process sees"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device that a CUDA process can be given."""

    number: str
    """"1", or "1:0" for instance 0 of the divided GPU 1"""
    uuid: str
    """whole: GPU-<uuid> or MIG-<uuid>"""
    name: str
    """what it is, for people"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How a device does at one moment."""

    memory_used_bytes: int
    """of all processes"""
    memory_total_bytes: int
    utilisation_percent: int | None
    """share of the last second or less in which it computed; None where it does not say, as an
    instance does not"""
    temperature_celsius: int | None
    """of the GPU; None where it does not say"""


class Devices(Protocol):
    """The devices of this machine."""

    def present(self) -> tuple[Device, ...]:
        """All of them by number; the instances of a divided GPU in its place. May be none.

        Raises:
            FedLoraError: MISSING_EXTRA or DEVICE_UNAVAILABLE where they cannot be told.
        """
        ...

    def read(self, uuid: str) -> Reading:
        """How the device with that whole UUID does.

        Raises:
            FedLoraError: DEVICE_UNAVAILABLE if it does not answer.
        """
        ...


def find(present: Sequence[Device], word: str) -> Device | None:
    """The device meant by a number or by the beginning of a UUID; None if none or several are."""
    if word.startswith(("GPU-", "MIG-")):
        found = [device for device in present if device.uuid.startswith(word)]
    else:
        found = [device for device in present if device.number == word]
    return found[0] if len(found) == 1 else None


def usable(present: Sequence[Device], environ: Mapping[str, str]) -> tuple[Device, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; all where it is not set.

    A batch system says in that variable which devices are a job's.
    """
    if VISIBLE not in environ:
        return tuple(present)
    left: list[Device] = []
    for entry in environ[VISIBLE].split(","):
        device = find(present, entry.strip())
        # As CUDA does, which stops reading at the first entry that is no device.
        if device is None:
            break
        left.append(device)
    return tuple(left)
