"""Follows a run over the network in a thread, and hands what it learns to the main thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, RoundReport, RunEvent
from fedlora_cli.admin_client import AdminClient

__all__ = ["News", "Watcher"]

# While the server is away (a restart) it is asked again after this long.
_RETRY_SECONDS = 0.5

_ROUND_NEWS = (EventType.ROUND_COMPLETED, EventType.CERTIFICATE_READY)

News = RunEvent | tuple[RoundReport, ...]


class Watcher:
    """A thread that watches one run until it has ended.

    Args:
        address: of the aggregator.
        run: name of the run.
    """

    def __init__(self, address: str, run: str) -> None:
        self._client = AdminClient(address)
        self._run = run
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._next_sequence = 1
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def close(self) -> None:
        """Ends the watching, wherever it is."""
        self._closing.set()
        self._client.close()
        self._thread.join()

    def wait_for_end(self, timeout_seconds: float) -> None:
        """Lets the last events of a run arrive whose server is leaving."""
        self._thread.join(timeout_seconds)

    def take(self, timeout_seconds: float) -> Sequence[News]:
        """What is new, at once if there is something, else after waiting this long."""
        taken: list[News] = []
        try:
            taken.append(self._news.get(timeout=timeout_seconds))
            while True:
                taken.append(self._news.get_nowait())
        except queue.Empty:
            return taken

    def _follow(self) -> None:
        while not self._closing.is_set():
            try:
                self._follow_stream()
            except FedLoraError as error:
                if error.reason not in (Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED):
                    break
                self._closing.wait(_RETRY_SECONDS)
            except ValueError:
                # grpc's word for a call on a channel that `close` has just closed.
                break
            else:
                break

    def _follow_stream(self) -> None:
        for event in self._client.watch_run(self._run, first_sequence=self._next_sequence):
            self._news.put(event)
            self._next_sequence = max(self._next_sequence, event.sequence + 1)
            if event.type in _ROUND_NEWS:
                self._news.put(self._client.list_rounds(self._run))
