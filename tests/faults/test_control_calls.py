"""Heartbeats and polls are answered soon, whatever else the server has to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.control_calls import beside
from support.crowd import p99

MOST_SECONDS = 0.05
LONGEST_SECONDS = 1.0
"""a quarter of what the aggregation takes: nothing of it happens where calls are answered"""


async def test_control_calls_are_answered_beside_uploads_and_an_aggregation(tmp_path: Path):
    latencies, _ = await beside(tmp_path, uploads=4, busy=True, seconds=4.0)
    assert len(latencies) > 10
    # The median: what else a machine for tests has to do is in every figure.
    assert latencies[len(latencies) // 2] < MOST_SECONDS
    assert latencies[-1] < LONGEST_SECONDS


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_control_calls_keep_their_99th_percentile_beside_32_uploads_and_an_aggregation(
    tmp_path: Path,
):
    """On a machine that has nothing else to do."""
    latencies, rounds = await beside(tmp_path, uploads=32, busy=True, seconds=15.0)
    assert rounds, "no aggregation has come to its end"
    assert p99(latencies) < MOST_SECONDS
