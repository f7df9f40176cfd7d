"""The CUDA devices of this machine: which there are, how they do, and whose each one is."""

from fedlora.devices.base import Device, Devices, Reading, find, usable
from fedlora.devices.lock import device_lock
from fedlora.devices.nvml import NvmlDevices

__all__ = ["Device", "Devices", "NvmlDevices", "Reading", "device_lock", "find", "usable"]
