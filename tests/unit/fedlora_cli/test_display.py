"""Lines for pipes, JSON for programs, a live table for terminals."""

from __future__ import annotations

import io
import json

from rich.console import Console
from support.sample_run import sample_round

from fedlora.runs.report import EventType, RunEvent
from fedlora_cli.display import JsonDisplay, LiveDisplay, PlainDisplay


def event(sequence, kind, time=1000.0, **fields) -> RunEvent:
    return RunEvent(sequence=sequence, type=kind, time=time, **fields)


STARTED = event(1, EventType.ROUND_STARTED, round=1, detail={"cohort": ["a", "b"]})
PROGRESS = event(
    0,
    EventType.WORKER_PROGRESS,
    worker="a",
    detail={"completed_steps": 3, "total_steps": 9, "train_loss": 0.5},
)


def test_plain_output_has_a_line_for_what_matters(capsys):
    display = PlainDisplay(3, since=0.0)
    display.event(STARTED)
    display.event(PROGRESS)
    display.event(event(2, EventType.WORKER_LOST, worker="b"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("round 1/3 started with 2 workers")
    assert "b is lost" in lines[1]


def test_plain_output_does_not_repeat_what_was_before_a_resume(capsys):
    display = PlainDisplay(3, since=2000.0)
    display.event(STARTED)
    assert capsys.readouterr().out == ""


def test_plain_output_tells_a_round_when_complete_and_when_certified(capsys):
    display = PlainDisplay(3, since=0.0)
    for reports in ([sample_round(1, certified=False)], [sample_round(1)], [sample_round(1)]):
        display.rounds(reports)
    lines = capsys.readouterr().out.splitlines()
    assert ["bound" in line for line in lines] == [False, True]


def test_json_output_is_one_event_a_line(capsys):
    display = JsonDisplay()
    display.event(STARTED)
    display.notice("for people")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["detail"] == {"cohort": ["a", "b"]}
    assert captured.err == "for people\n"


def test_the_live_display_shows_rounds_and_a_bar_per_worker(monkeypatch):
    # rich draws nothing on a terminal that calls itself dumb, as those of some CI machines do.
    monkeypatch.setenv("TERM", "xterm-256color")
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    display = LiveDisplay(3, console)
    with display:
        display.event(STARTED)
        display.event(PROGRESS)
        display.rounds([sample_round(1)])
        display.notice("hello")
    shown = console.file.getvalue()
    assert "3/9" in shown
    assert "loss 0.500" in shown
    assert "hello" in shown
    assert "round 1/3" in shown


def test_what_a_worker_says_is_no_markup_for_the_live_display():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    display = LiveDisplay(3, console)
    left = {"reason": "[INST] [bold] of a prompt [/INST]"}
    display.event(event(1, EventType.WORKER_LEFT, time=display._since, worker="a", detail=left))
    assert "[INST] [bold] of a prompt [/INST]" in console.file.getvalue()
