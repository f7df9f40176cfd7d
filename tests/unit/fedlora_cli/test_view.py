"""Events in, the present state out."""

from __future__ import annotations

import pytest

from fedlora.runs.report import EventType, RunEvent
from fedlora_cli.view import RunView, notice_of


def event(sequence: int, kind: EventType, *, round=0, worker="", **detail) -> RunEvent:
    return RunEvent(
        sequence=sequence,
        type=kind,
        time=float(sequence),
        round=round,
        worker=worker,
        detail=detail,
    )


HISTORY = [
    event(1, EventType.RUN_CREATED),
    event(2, EventType.RUN_STARTED),
    event(3, EventType.WORKER_REGISTERED, worker="a"),
    event(4, EventType.WORKER_READY, worker="a"),
    event(5, EventType.WORKER_READY, worker="b"),
    event(6, EventType.ROUND_STARTED, round=1, cohort=["a", "b"]),
    event(7, EventType.UPDATE_COMMITTED, round=1, worker="a", total_bytes=2_500_000),
    event(8, EventType.WORKER_LOST, round=1, worker="b"),
    event(9, EventType.ROUND_CLOSED, round=1),
    event(10, EventType.ADAPTER_PUBLISHED, round=1),
]


def seen(count: int) -> RunView:
    view = RunView(3)
    for e in HISTORY[:count]:
        view.apply(e)
    return view


def test_workers_are_shown_with_what_they_do():
    assert seen(3).workers["a"].activity == "loading the model"
    assert seen(5).workers["b"].activity == "ready"
    assert seen(6).workers["a"].activity == "training"
    assert seen(7).workers["a"].activity == "sent 2.5 MB"
    assert seen(8).workers["b"].activity == "lost"


def test_the_phase_follows_the_run():
    phases = [seen(n).phase for n in (1, 2, 6, 9, 10)]
    assert phases == ["created", "waiting for workers", "training", "aggregating", "evaluating"]


def test_a_lost_worker_does_not_evaluate():
    assert seen(10).workers["a"].activity == "evaluating"
    assert seen(10).workers["b"].activity == "lost"


def test_an_event_that_comes_again_changes_nothing():
    view = seen(10)
    view.apply(HISTORY[5])
    assert view.phase == "evaluating"
    assert view.workers["a"].activity == "evaluating"


def test_progress_moves_the_bar_and_a_commit_puts_it_back():
    view = seen(6)
    progress = {"completed_steps": 3.0, "total_steps": 9.0, "train_loss": 0.5, "task_id": "t"}
    view.apply(event(0, EventType.WORKER_PROGRESS, round=1, worker="a", **progress))
    worker = view.workers["a"]
    assert (worker.completed_steps, worker.total_steps, worker.loss) == (3, 9, 0.5)
    view.apply(HISTORY[6])
    assert (worker.completed_steps, worker.total_steps) == (0, 0)


def test_progress_without_figures_is_harmless():
    view = seen(6)
    view.apply(event(0, EventType.WORKER_PROGRESS, round=1, worker="a", completed_steps="x"))
    assert view.workers["a"].completed_steps == 0


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (EventType.WORKER_LOST, "no sign of life"),
        (EventType.DEADLINE_EXTENDED, "because"),
        (EventType.RUN_FAILED, "because"),
        (EventType.SERVER_RESTARTED, "resumed the run in round 2"),
    ],
)
def test_what_people_should_hear_of_has_a_sentence(kind, words):
    assert words in notice_of(event(11, kind, round=2, worker="b", reason="because"), seen(10))


def test_leaving_is_news_only_while_the_run_goes_on():
    left = event(12, EventType.WORKER_LEFT, worker="a", reason="terminated")
    view = seen(10)
    assert notice_of(left, view) == "a has left: terminated"
    view.apply(event(11, EventType.RUN_COMPLETED))
    assert notice_of(left, view) == ""


def test_ordinary_events_have_none():
    assert [notice_of(e, seen(10)) for e in HISTORY if e.type is not EventType.WORKER_LOST] == [
        ""
    ] * 9


def test_a_run_that_is_complete_early_says_why():
    view = seen(len(HISTORY))
    early = event(11, EventType.RUN_COMPLETED, round=1, reason="no better in 2 rounds")
    view.apply(early)
    assert view.has_ended
    assert notice_of(early, view) == "the run is complete: no better in 2 rounds"
    assert notice_of(event(12, EventType.RUN_COMPLETED, round=1), view) == ""
