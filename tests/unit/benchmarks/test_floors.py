"""Bytes per second of several workers at once."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_flow_lasts_from_the_first_byte_to_the_last_answer_and_counts_everybodys_bytes():
    from transports.floors import flow_of

    notes = [
        {"push_began": 1.0, "push_ended": 3.0, "bytes_up": 10},
        {"push_began": 2.0, "push_ended": 6.0, "bytes_up": 20},
    ]
    flow = flow_of(notes, "push", server_cpu=3.0, worker_cpu=6.0)
    assert flow.bytes_per_second == pytest.approx(30 / 5)
    assert flow.server_cpu == pytest.approx(0.1)
    assert flow.worker_cpu == pytest.approx(0.2)


def test_files_of_a_floor_are_as_long_as_asked_and_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transports import floors

    written = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path: (written.append(path.stat().st_size), unlink(path))
    )
    floors.written(tmp_path, 1_500_000, 3)
    assert written == [1_500_000] * 3
    assert not list(tmp_path.iterdir())
