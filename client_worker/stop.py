"""SIGTERM and SIGINT: how each kind of work learns of them.

- A training step looks at `requested`.
- A call to the server runs inside `cancelling(call.cancel)`, a pause is `sleep`: both end at once
  and raise `Stopped`.
- Loading a model and evaluating can do neither, so they run inside `window()`, in which a signal
  handler raises `Stopped`, the way Ctrl-C does.

Two things that were measured decide the rest. An exception raised by a handler inside gRPC leaves
gRPC's locks taken, and every later call waits for them: so no handler raises outside a window. And
a main thread that waits for a lock may never run a handler: so signals are read from a pipe, which
C code fills wherever the signal arrived, by a thread that then cancels what is to be cancelled and
wakes the main thread with SIGURG, a signal that means nothing to anybody else, until it has left
its window.

A second signal ends the process on the spot, with code 128 + its number.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from fedlora.exit_codes import ExitCode

__all__ = ["JOIN_SECONDS", "StopRequest", "Stopped"]

JOIN_SECONDS = 2.0
"""for how long the end of the process waits for each thread that is in a call of its own"""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_WAKE = signal.SIGURG
_WAKE_SECONDS = 0.05


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
        """Asks the process to end; from any thread."""
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
        before = {s: signal.signal(s, self._on_signal) for s in (*_SIGNALS, _WAKE)}
        arrivals, arrived = os.pipe()
        os.set_blocking(arrived, False)
        before_pipe = signal.set_wakeup_fd(arrived, warn_on_full_buffer=False)
        main = threading.get_ident()
        watcher = threading.Thread(
            target=self._watch, args=(arrivals, main), name="signals", daemon=True
        )
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before_pipe)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            os.close(arrived)
            watcher.join()
            os.close(arrivals)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        if self._armed and self.requested:
            self._armed = False
            raise Stopped

    def _watch(self, arrivals: int, main: int) -> None:
        while True:
            waking = self._armed and self.requested
            ready, _, _ = select.select([arrivals], [], [], _WAKE_SECONDS if waking else None)
            numbers = os.read(arrivals, 64) if ready else b""
            if ready and not numbers:
                return
            asked = [number for number in numbers if number in _SIGNALS]
            for number in asked:
                if self.requested:
                    os._exit(128 + number)
                self.request(signal.Signals(number))
            # Its own wake-up calls come through the pipe, too: they are not to be answered.
            if self._armed and self.requested and (asked or not ready):
                signal.pthread_kill(main, _WAKE)
