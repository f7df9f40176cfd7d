"""What every process shows: who it is, its devices, and when its identity ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from prometheus_client import REGISTRY

from fedlora import __version__
from fedlora.devices import Reading
from fedlora.telemetry.process_metrics import process_registry
from fedlora.telemetry.torch_device import torch_readings

GPU = Reading(
    memory_used_bytes=3, memory_total_bytes=80, utilisation_percent=50, temperature_celsius=61
)


def test_a_process_says_its_version_and_service():
    registry = process_registry("worker")
    labels = {"version": __version__, "service": "worker"}
    assert registry.get_sample_value("fedlora_build_info", labels) == 1
    assert registry.get_sample_value("process_resident_memory_bytes") > 1e6


def test_nothing_is_registered_for_the_whole_process():
    process_registry("worker")
    assert REGISTRY.get_sample_value("fedlora_build_info") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_used_bytes", 3),
        ("memory_total_bytes", 80),
        ("utilization_ratio", 0.5),
        ("temperature_celsius", 61),
    ],
)
def test_a_device_is_shown_by_its_uuid(name: str, value: float):
    registry = process_registry("worker", devices=lambda: {"GPU-1": GPU})
    assert registry.get_sample_value(f"fedlora_device_{name}", {"device": "GPU-1"}) == value


def test_what_a_source_does_not_know_is_not_shown():
    plain = replace(GPU, utilisation_percent=None, temperature_celsius=None)
    registry = process_registry("worker", devices=lambda: {"GPU-1": plain})
    device = {"device": "GPU-1"}
    assert registry.get_sample_value("fedlora_device_memory_used_bytes", device) == 3
    assert registry.get_sample_value("fedlora_device_temperature_celsius", device) is None


def test_a_device_that_is_gone_is_not_shown_any_more():
    devices = {"GPU-1": GPU}
    registry = process_registry("worker", devices=lambda: devices)
    devices.clear()
    device = {"device": "GPU-1"}
    assert registry.get_sample_value("fedlora_device_memory_used_bytes", device) is None


def test_an_identity_that_is_renewed_shows_its_new_end():
    ends = [100.0, 200.0]
    registry = process_registry("aggregator", expires=lambda: ends[0])
    name = "fedlora_identity_expires_timestamp_seconds"
    assert registry.get_sample_value(name) == 100
    del ends[0]
    assert registry.get_sample_value(name) == 200


def test_a_process_without_an_identity_shows_no_end_of_it():
    registry = process_registry("aggregator")
    assert registry.get_sample_value("fedlora_identity_expires_timestamp_seconds") is None


def test_a_cpu_has_no_figures():
    assert torch_readings(torch.device("cpu")) == {}
