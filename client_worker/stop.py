"""SIGTERM and SIGINT: a flag that work looks at, and an exception where it only waits.

A training step looks at `requested`. A call to the server, a pause before the next try, the
loading of a model or an evaluation cannot look, so they run inside `window()`, in which the signal
raises `Stopped`. Everywhere else (a file half written, an update half encoded) nothing is
interrupted. A second signal meets the default action and ends the process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fedlora.exit_codes import ExitCode

__all__ = ["StopRequest", "Stopped"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """Somebody asked this process to end. No `except Exception` may swallow it."""


class StopRequest:
    """Whether this process was asked to end, and by which signal."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._armed = False

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

    def check(self) -> None:
        """Raises `Stopped` if the process was asked to end."""
        if self.requested:
            raise Stopped

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
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self.request(signal.Signals(signum))
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self._armed:
            self._armed = False
            raise Stopped
