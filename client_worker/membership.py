"""This process's place in a run: its session, and how it gets a new one.

A server that no longer knows a session (its state was restored from a backup, say) is told again
who the worker is, under the same instance id, by whichever thread learns of it first. The others
find the new token and go on. A session that a *newer process* has taken is another matter: its
error is passed on, and the process has to end.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import structlog

from client_worker.ports import Federation
from fedlora.adapters.spec import AdapterLayout
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, DataSlot, Registration

__all__ = ["Assignment", "Membership", "assignment_of"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

Assignment = tuple[RunSpec, int, DataSlot | None]
"""run, rank and data slot: what a trainer is made for"""

# Renewed, and the new session is unknown as well: something else is wrong.
_MAX_RENEWALS = 3


def assignment_of(registration: Registration) -> Assignment:
    """What a trainer is made for."""
    return registration.run, registration.rank, registration.data_slot


class Membership:
    """Registers, holds the session token, and registers again where that is needed.

    Args:
        federation: the server.
        name: the worker's name.
        run_name: run to join; empty for the only open one.
        capabilities: what it runs on.
    """

    def __init__(
        self, federation: Federation, *, name: str, run_name: str, capabilities: Capabilities
    ) -> None:
        self._federation = federation
        self._name = name
        self._run_name = run_name
        self._capabilities = capabilities
        self._instance_id = uuid.uuid4().hex
        self._registration: Registration | None = None
        self._confirmed: tuple[Assignment, AdapterLayout] | None = None
        self._lock = threading.Lock()

    @property
    def registration(self) -> Registration:
        """The server's latest answer."""
        if self._registration is None:
            raise AssertionError("register first")
        return self._registration

    def register(self) -> Registration:
        """Opens a session."""
        with self._lock:
            self._registration = self._register()
            return self._registration

    def lower_rank(self, max_rank: int) -> Registration:
        """Registers again under the same instance id, for no higher rank than this."""
        with self._lock:
            self._capabilities = replace(self._capabilities, max_rank=max_rank)
            self._registration = self._register()
            return self._registration

    def confirm(self, assignment: Assignment, layout: AdapterLayout) -> None:
        """Declares the adapter of the trainer that was made for `assignment`.

        Not to a run that this process was registered into meanwhile: the first layout that is
        declared there would be that run's.
        """

        def declare(token: str) -> None:
            if assignment_of(self.registration) == assignment:
                self._federation.confirm_adapter(token, layout)

        self.with_session(declare)
        self._confirmed = (assignment, layout)

    def with_session(self, call: Callable[[str], T]) -> T:
        """What `call` returns for the current session token.

        Raises:
            FedLoraError: the call's own; UNKNOWN_SESSION and SESSION_FENCED only if they are said
                of the session that is current.
        """
        for _ in range(_MAX_RENEWALS):
            token = self.registration.session_token
            try:
                return call(token)
            except FedLoraError as error:
                if error.reason is Reason.UNKNOWN_SESSION:
                    self._renew(token)
                elif error.reason is Reason.SESSION_FENCED and self._is_stale(token):
                    continue  # fenced by ourselves: the other thread has registered since
                else:
                    raise
        return call(self.registration.session_token)

    def leave(self, reason: str) -> None:
        """Ends the session; `reason` is seen by whoever may look at the run."""
        self._federation.leave(self.registration.session_token, reason)

    def _register(self) -> Registration:
        return self._federation.register(
            worker_name=self._name,
            run_name=self._run_name,
            instance_id=self._instance_id,
            capabilities=self._capabilities,
        )

    def _is_stale(self, token: str) -> bool:
        with self._lock:  # waits for a renewal in progress
            return self.registration.session_token != token

    def _renew(self, token: str) -> None:
        with self._lock:
            if self.registration.session_token != token:
                return
            log.warning("session_unknown", action="registering again")
            registration = self._register()
            # Confirmed before any other thread sees the token: until then the server would tell a
            # heartbeat to abandon the task in hand.
            if self._confirmed and self._confirmed[0] == assignment_of(registration):
                layout = self._confirmed[1]
                self._federation.confirm_adapter(registration.session_token, layout)
            self._registration = registration
