"""SIGTERM and SIGINT: how each kind of work learns of them.

- A training step looks at `requested`.
- A call to the server runs inside `cancelling(call.cancel)`, a pause is `sleep`: both end at once
  and raise `Stopped`.
- Loading a model and evaluating can do neither, so they run inside `window()`, in which the signal
  handler itself raises `Stopped`, the way Ctrl-C does.

The handler raises nowhere else, least of all inside gRPC: an exception between the lines of
somebody's locking leaves the lock taken, and every later call waits for it (measured: two hangs in
forty stops). Outside windows it only puts the signal into a queue; a thread takes it from there and
cancels what is to be cancelled. A second signal meets the default action and ends the process.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fedlora.exit_codes import ExitCode

__all__ = ["StopRequest", "Stopped"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Somebody asked this process to end. No `except Exception` may swallow it."""


class StopRequest:
    """Whether this process was asked to end, and by which signal.

    One thread owns it, the one that made it unless `own` says otherwise: only there is anything
    raised or cancelled.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._armed = False
        self._owner = threading.get_ident()
        self._arrived: queue.SimpleQueue[signal.Signals | None] = queue.SimpleQueue()
        self._noticed = threading.Event()
        self._lock = threading.Lock()
        self._cancels: list[Callable[[], object]] = []

    def own(self) -> None:
        """Makes the calling thread the owner."""
        self._owner = threading.get_ident()

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return self._signal is not None

    @property
    def reason(self) -> str:
        """What the server is told."""
        return f"stopped by {self._signal.name}" if self._signal else ""

    @property
    def exit_code(self) -> ExitCode:
        """0 after SIGTERM, the way services are stopped; 130 after Ctrl-C."""
        return ExitCode.INTERRUPTED if self._signal is signal.SIGINT else ExitCode.OK

    def request(self, signum: signal.Signals = signal.SIGTERM) -> None:
        """Asks the process to end; from any thread, but not from a signal handler."""
        self._signal = signum
        with self._lock:
            self._noticed.set()
            for cancel in self._cancels:
                cancel()

    def check(self) -> None:
        """Raises `Stopped` in the owner's thread if the process was asked to end."""
        if self.requested and threading.get_ident() == self._owner:
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Pauses, unless the process is asked to end."""
        self._noticed.wait(seconds)
        self.check()

    @contextmanager
    def cancelling(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Runs something that `cancel` ends; `Stopped` if it was ended."""
        if threading.get_ident() != self._owner:
            yield
            return
        with self._lock:
            self._cancels.append(cancel)
        try:
            if self.requested:
                cancel()
            yield
        except Exception:
            self.check()
            raise
        finally:
            with self._lock:
                self._cancels.remove(cancel)

    @contextmanager
    def window(self) -> Iterator[None]:
        """Within it, and in the main thread, a signal raises `Stopped` at once."""
        self._armed = True  # before the look, so that no signal falls between the two
        try:
            self.check()
            yield
        finally:
            self._armed = False

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Takes SIGTERM and SIGINT for as long as it lasts; only in the main thread."""
        before = {s: signal.signal(s, self._on_signal) for s in _SIGNALS}
        watcher = threading.Thread(target=self._watch, name="signals", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._arrived.put(None)
            watcher.join()

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        # SimpleQueue.put is reentrant; locks and events are not.
        self._signal = signal.Signals(signum)
        self._arrived.put(self._signal)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._armed:
            self._armed = False
            raise Stopped

    def _watch(self) -> None:
        while (signum := self._arrived.get()) is not None:
            self.request(signum)
