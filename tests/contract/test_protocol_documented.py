"""docs/protocol.md names every reason with its status, every event, every input of the machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aggregator_service.rounds.machine import TABLE
from fedlora.rpc.status import STATUS_OF_REASON
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


@pytest.mark.parametrize("reason", sorted(STATUS_OF_REASON))
def test_every_reason_is_listed_with_its_status(reason):
    assert f"| `{reason.value}` | {STATUS_OF_REASON[reason].name} |" in PAGE


@pytest.mark.parametrize("event", sorted(EventType))
def test_every_event_is_described(event):
    assert f"`{event.value}`" in PAGE


@pytest.mark.parametrize("event", sorted(TABLE, key=lambda e: e.__name__))
def test_the_table_of_phases_is_the_machine_s(event):
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", event.__name__).lower()
    phases = [p.value for p in RunPhase if p in TABLE[event]]
    shown = "all" if len(phases) == len(RunPhase) else ", ".join(phases)
    assert f"| {words} | {shown} |" in PAGE
