"""Training progress for those who watch: the latest value, once a second, from its own thread.

Training hands a value over and goes on; what the thread has not sent by then is replaced. No
failure here concerns the round.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from client_worker.stop import JOIN_SECONDS
from fedlora.errors import FedLoraError
from fedlora.runs.tasks import Progress

__all__ = ["ProgressReporter"]

log = structlog.get_logger(__name__)

_INTERVAL_SECONDS = 1.0


class ProgressReporter:
    """Sends the latest progress.

    Args:
        send: one report, with a deadline of its own.
        pause: waits the given seconds between two reports, or less when `closing` is set.
    """

    def __init__(
        self,
        send: Callable[[Progress], None],
        *,
        pause: Callable[[threading.Event, float], object] = lambda closing, s: closing.wait(s),
    ) -> None:
        self._send = send
        self._pause = pause
        self._latest: Progress | None = None
        self._offered = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._log = log.bind()

    def start(self, **context: str) -> None:
        """Begins.

        Args:
            context: stands on the thread's log lines.
        """
        self._log = log.bind(**context)
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def offer(self, progress: Progress) -> None:
        """Hands over the newest value; returns at once."""
        self._latest = progress
        self._offered.set()

    def close(self) -> None:
        """Ends the thread; what was not sent is dropped."""
        self._closing.set()
        self._offered.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while True:
            self._offered.wait()
            if self._closing.is_set():
                return
            self._offered.clear()
            progress = self._latest
            if progress is not None:
                try:
                    self._send(progress)
                except FedLoraError as error:
                    self._log.debug("progress_not_reported", reason=error.reason.value)
            self._pause(self._closing, _INTERVAL_SECONDS)
