"""Asking the server: with the session of the moment, with patience, open to a signal.

All that the main line wants of the server goes through here, so nothing else in it knows that a
network lies between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from client_worker.membership import Membership
from client_worker.patience import TRANSIENT, Patience
from client_worker.stop import StopRequest
from fedlora.errors import FedLoraError, Reason

__all__ = ["Asking", "RefusedError"]

T = TypeVar("T")


class RefusedError(Exception):
    """The server's answer to a call, when trying again will not change it.

    It keeps apart what the server refuses from what is wrong on this machine: both are
    FedLoraErrors, and they end a worker with different exit codes.
    """

    def __init__(self, error: FedLoraError) -> None:
        super().__init__(str(error))
        self.error = error


class Asking:
    """Calls of the main thread.

    Args:
        membership: holds the session.
        patience: how long to go on without an answer.
        stop: interrupts any wait.
    """

    def __init__(self, membership: Membership, patience: Patience, stop: StopRequest) -> None:
        self._membership = membership
        self._patience = patience
        self._stop = stop

    def ask(self, what: str, call: Callable[[str], T]) -> T:
        """What `call` returns for the session token, however long the server takes.

        Raises:
            RefusedError: the server said no, or nothing for too long.
            Stopped: somebody asked this process to end.
        """
        return self.insist(what, lambda: self._membership.with_session(call))

    def insist(
        self, what: str, attempt: Callable[[], T], *, transient: frozenset[Reason] = TRANSIENT
    ) -> T:
        """The same for an attempt that sees to its session itself."""
        self._stop.check()
        try:
            return self._patience.insist(what, attempt, transient=transient)
        except FedLoraError as error:
            raise RefusedError(error) from error

    def rest(self, seconds: float) -> None:
        """Waits for a while, unless a signal comes."""
        self._patience.rest(seconds)
