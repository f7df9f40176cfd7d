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
        self._changed = threading.Condition()

    def beat(self, task_id: str) -> Directive:
        with self._changed:
            self.tasks.append(task_id)
            self._changed.notify_all()
            answer = self.answer
        if isinstance(answer, FedLoraError):
            raise answer
        return answer

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
