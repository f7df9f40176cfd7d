"""Heartbeats: a thread that proves life while the main one loads, trains or waits.

It knows which task is in hand, and what the server last said of it. Long work asks `abandoned`
now and then; nothing here interrupts it. While there is none in hand only every other beat is to be
answered: an answer tells the idle nothing but that the server is there, and costs it a write.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from client_worker.stop import JOIN_SECONDS
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Directive

__all__ = ["Heartbeats"]

log = structlog.get_logger(__name__)


class Heartbeats:
    """Beats until closed.

    Args:
        beat: one heartbeat with the id of the task in hand (empty when idle) and whether it is to
            be answered, with a deadline of its own; None if it was not answered.
        on_answer: called after each one that was answered.
    """

    def __init__(
        self,
        beat: Callable[[str, bool], Directive | None],
        *,
        on_answer: Callable[[], None] = lambda: None,
    ) -> None:
        self._beat = beat
        self._on_answer = on_answer
        self._task_id = ""
        self._abandoned = ""
        self._fenced: FedLoraError | None = None
        self._failing = False
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._log = log.bind()

    @property
    def abandoned(self) -> bool:
        """The task in hand no longer counts, or this process no longer does."""
        return self._fenced is not None or bool(self._abandoned == self._task_id != "")

    def raise_if_fenced(self) -> None:
        """Raises SESSION_FENCED if a heartbeat was answered with it."""
        if self._fenced is not None:
            raise self._fenced

    @contextmanager
    def holding(self, task_id: str) -> Iterator[None]:
        """The task in hand, for as long as it lasts."""
        self._abandoned = ""
        self._task_id = task_id
        try:
            yield
        finally:
            self._task_id = ""

    def start(self, *, interval_seconds: float, **context: str) -> None:
        """Begins.

        Args:
            interval_seconds: pause between two heartbeats.
            context: stands on the thread's log lines.
        """
        self._log = log.bind(**context)
        self._thread = threading.Thread(
            target=self._run, args=(interval_seconds,), name="heartbeats", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; one heartbeat may still be under way."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self, interval_seconds: float) -> None:
        answered = False
        while not self._closing.wait(interval_seconds) and self._fenced is None:
            task_id = self._task_id
            try:
                directive = self._beat(task_id, bool(task_id) or not answered)
            except FedLoraError as error:
                self._failed(error)
                answered = False
                continue
            answered = directive is not None
            if answered:
                self._failing = False
                self._on_answer()
            if directive is Directive.ABANDON_TASK and task_id:
                self._abandoned = task_id

    def _failed(self, error: FedLoraError) -> None:
        if error.reason is Reason.SESSION_FENCED:
            self._fenced = error
        # Each outage once: the main thread says more as soon as it needs the server.
        elif not self._failing and not self._closing.is_set():
            self._log.warning("heartbeat_failed", reason=error.reason.value, error=str(error))
        self._failing = True
