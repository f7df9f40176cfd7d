import threading

import pytest

from client_worker.heartbeat import Heartbeats
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Directive


class Server:
    """Answers heartbeats as told, and lets a test wait for the n-th of them."""

    def __init__(self) -> None:
        self.answer: Directive | FedLoraError = Directive.CONTINUE
        self.tasks: list[str] = []
        self.answered: list[bool] = []
        self._changed = threading.Condition()

    def beat(self, task_id: str, answered: bool) -> Directive | None:
        with self._changed:
            self.tasks.append(task_id)
            self.answered.append(answered)
            self._changed.notify_all()
            answer = self.answer
        if isinstance(answer, FedLoraError):
            raise answer
        return answer if answered else None

    def wait_for_more(self, number: int = 2) -> None:
        """The last of them was asked and answered after this call began."""
        with self._changed:
            enough = len(self.tasks) + number
            assert self._changed.wait_for(lambda: len(self.tasks) >= enough, 10)


@pytest.fixture
def beating():
    server = Server()
    heartbeats = Heartbeats(server.beat)
    heartbeats.start(interval_seconds=0.001, worker="w")
    yield server, heartbeats
    heartbeats.close()


def test_they_name_the_task_in_hand_and_only_while_it_is_in_hand(beating):
    server, heartbeats = beating
    server.wait_for_more()
    assert server.tasks[-1] == ""
    with heartbeats.holding("task-1"):
        server.wait_for_more()
        assert server.tasks[-1] == "task-1"
    server.wait_for_more()
    assert server.tasks[-1] == ""


def test_the_answer_to_abandon_concerns_the_task_it_was_given_for(beating):
    server, heartbeats = beating
    with heartbeats.holding("task-1"):
        server.answer = Directive.ABANDON_TASK
        server.wait_for_more(3)
        assert heartbeats.abandoned
        server.answer = Directive.CONTINUE
        server.wait_for_more()
    assert not heartbeats.abandoned
    with heartbeats.holding("task-2"):
        assert not heartbeats.abandoned


def test_an_idle_worker_has_nothing_to_abandon(beating):
    server, heartbeats = beating
    server.answer = Directive.ABANDON_TASK
    server.wait_for_more(3)
    assert not heartbeats.abandoned


def test_idle_every_other_beat_is_to_be_answered_and_all_with_work_in_hand_or_after_a_failure(
    beating,
):
    server, heartbeats = beating
    server.wait_for_more(6)
    assert server.answered[:6] == [True, False] * 3
    with heartbeats.holding("task-1"):
        server.wait_for_more(3)
        held = [a for a, task in zip(server.answered, server.tasks, strict=False) if task]
        assert held
        assert all(held)
    server.answer = FedLoraError(Reason.UNAVAILABLE, "away")
    server.wait_for_more()
    failed = len(server.answered)
    server.wait_for_more(4)
    assert all(server.answered[failed : failed + 4])


def test_only_an_answer_counts_as_one():
    server, answers = Server(), []
    heartbeats = Heartbeats(server.beat, on_answer=lambda: answers.append(len(server.tasks)))
    heartbeats.start(interval_seconds=0.001)
    server.wait_for_more(6)
    heartbeats.close()
    assert answers[:3] == [1, 3, 5]


def test_they_go_on_while_the_server_is_away(beating):
    server, heartbeats = beating
    server.answer = FedLoraError(Reason.UNAVAILABLE, "away")
    server.wait_for_more(5)
    heartbeats.raise_if_fenced()
    server.answer = Directive.CONTINUE
    server.wait_for_more()


def test_a_fenced_process_abandons_everything_and_stops_beating():
    server = Server()
    server.answer = FedLoraError(Reason.SESSION_FENCED, "a newer process")
    heartbeats = Heartbeats(server.beat)
    heartbeats.start(interval_seconds=0.001)
    # It may have ended before anybody could look for it.
    for thread in [t for t in threading.enumerate() if t.name == "heartbeats"]:
        thread.join(10)
        assert not thread.is_alive()
    assert heartbeats.abandoned
    with pytest.raises(FedLoraError, match="a newer process"):
        heartbeats.raise_if_fenced()
    assert len(server.tasks) == 1
