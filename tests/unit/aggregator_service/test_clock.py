"""A run's clock goes on from where it was stored."""

from __future__ import annotations

from aggregator_service.clock import RunClock


def test_a_clock_counts_from_its_base():
    now = 7.0
    clock = RunClock(100.0, lambda: now)
    now = 9.5
    assert clock.now() == 102.5
