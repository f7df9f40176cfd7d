"""What is made of what the server is told: numbers worked by hand."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from aggregator_service.metrics.calls import CallMetrics
from aggregator_service.telemetry import CallEnded, UploadEnded, UploadResult

RATE = "fedlora_upload_rate_bytes_per_second"
MIB = 1024**2


def ended(result: UploadResult, num_bytes: int, seconds: float) -> UploadEnded:
    return UploadEnded(result=result, num_bytes=num_bytes, seconds=seconds)


def test_the_rate_of_an_upload_is_its_bytes_over_its_seconds():
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    metrics.upload_ended(ended(UploadResult.COMMITTED, 3 * MIB, 2.0))
    metrics.upload_ended(ended(UploadResult.CUT, MIB, 8.0))
    assert registry.get_sample_value(f"{RATE}_sum") == 1.5 * MIB + MIB / 8
    assert registry.get_sample_value(f"{RATE}_count") == 2
    buckets = {
        float(sample.labels["le"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"{RATE}_bucket"
    }
    # Between them lies 1 MiB/s: one is below it, both are below 4 MiB/s.
    assert (buckets[MIB], buckets[4 * MIB]) == (1, 2)


def test_mistakes_of_ours_are_counted_from_zero():
    """A counter that is first seen at 1 has not increased, and the alert asks for its increase."""
    registry = CollectorRegistry()
    metrics = CallMetrics(registry, methods=["Leave"])
    internal = {"method": "Leave", "code": "INTERNAL"}
    assert registry.get_sample_value("fedlora_rpcs_total", internal) == 0
    assert registry.get_sample_value("fedlora_rpcs_total", {**internal, "code": "UNKNOWN"}) == 0
    metrics.call_ended(CallEnded(method="Leave", code="INTERNAL", seconds=0.1))
    assert registry.get_sample_value("fedlora_rpcs_total", internal) == 1


def test_what_brought_nothing_at_a_rate_of_its_own_has_none():
    registry = CollectorRegistry()
    metrics = CallMetrics(registry)
    for result in (UploadResult.REPLAYED, UploadResult.BUSY, UploadResult.REFUSED):
        metrics.upload_ended(ended(result, MIB, 1.0))
    metrics.upload_ended(ended(UploadResult.COMMITTED, 0, 1.0))
    assert registry.get_sample_value(f"{RATE}_count") == 0
