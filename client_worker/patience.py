"""Trying again: jittered exponential backoff, for as long as the configuration allows.

gRPC's own retries cover a blip of two seconds, for unary calls only. What lies beyond - a server
that restarts, a link that is down for a minute, a stream that was cut - is ridden out here. Where
the server says when to come back, that is what is waited, and up to half as long again.

The limit counts from the last sign of life: an answer to any call, heartbeats included, starts it
anew, and so does the beginning of the thing tried. So a worker that trained for an hour while the
server was away still has all its patience when it comes to submit.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from fedlora.errors import FedLoraError, Reason

__all__ = ["TRANSIENT", "Patience"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

TRANSIENT = frozenset(
    {
        Reason.UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED,
        Reason.INTERNAL,
        Reason.OUT_OF_SPACE,
        Reason.DISK_FAILED,
        Reason.UPLOAD_INCOMPLETE,
        Reason.UPLOAD_STALLED,
        Reason.UPLOAD_TOO_SLOW,
        Reason.SERVER_BUSY,
        Reason.OFFSET_MISMATCH,
        # A server that has been replaced and is about to end: its successor will answer.
        Reason.STATE_LOCKED,
    }
)
"""reasons that another try may overcome"""

_FIRST_DELAY_SECONDS = 0.2
# A server that restarts takes seconds; asking more rarely than this only delays the round.
_MAX_DELAY_SECONDS = 10.0
# The whole payload was sent each time: damage that recurs lies in this machine or on its way.
_MAX_DAMAGED = 3


class Patience:
    """Repeats what may yet succeed.

    Args:
        limit_seconds: longest time without any success; 0 for ever.
        on_success: called at each sign of life, from any thread.
        on_retry: called with the reason before each pause.
        clock, sleep, uniform: monotonic seconds; a pause, which may raise to end it all; a random
            number in [0, 1).
    """

    def __init__(
        self,
        *,
        limit_seconds: float,
        on_success: Callable[[], None] = lambda: None,
        on_retry: Callable[[Reason], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._limit = limit_seconds
        self._on_success = on_success
        self._on_retry = on_retry
        self._clock = clock
        self._sleep = sleep
        self._uniform = uniform
        self._last_success = clock()

    def succeeded(self) -> None:
        """Notes a sign of life; from any thread."""
        self._last_success = self._clock()
        self._on_success()

    def rest(self, seconds: float) -> None:
        """Does nothing for a while."""
        self._sleep(seconds)

    def insist(
        self,
        what: str,
        attempt: Callable[[], T],
        *,
        transient: frozenset[Reason] = TRANSIENT,
    ) -> T:
        """What `attempt` returns, once it does.

        Args:
            what: name of the thing tried, for logs and errors.
            attempt: one try; raises FedLoraError when it fails.
            transient: reasons to try again for.

        Raises:
            FedLoraError: the attempt's own for any other reason, for payloads damaged three times,
                or, naming `what` and the time spent, once the limit has passed.
        """
        started, failures, damaged = self._clock(), 0, 0
        while True:
            try:
                result = attempt()
            except FedLoraError as error:
                damaged += error.reason is Reason.DIGEST_MISMATCH
                again = error.reason in transient or 0 < damaged < _MAX_DAMAGED
                if not again:
                    raise
                failures += 1
                self._pause(what, error, failures, started)
            else:
                self.succeeded()
                if failures:
                    log.info("server_answers_again", what=what, failures=failures)
                return result

    def _pause(self, what: str, error: FedLoraError, failures: int, started: float) -> None:
        waited = self._clock() - max(started, self._last_success)
        if self._limit and waited >= self._limit:
            raise FedLoraError(
                error.reason,
                f"{what}: no success for {waited:.0f} s: {error.message}",
                hint=error.hint
                or "Check that the server runs and worker.server is its address; "
                f"worker.wait_for_server_seconds is {self._limit:g}",
            ) from error
        delay = self._delay(error, failures)
        if self._limit:
            delay = min(delay, self._limit - waited)
        report = log.warning if failures == 1 else log.debug
        report(
            "server_away",
            what=what,
            reason=error.reason.value,
            error=str(error),
            next_try_seconds=round(delay, 1),
        )
        self._on_retry(error.reason)
        self._sleep(delay)

    def _delay(self, error: FedLoraError, failures: int) -> float:
        # Workers cut off or sent away together must not come back together.
        if error.retry_seconds:
            return error.retry_seconds * (1 + self._uniform() / 2)
        most = min(_FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16), _MAX_DELAY_SECONDS)
        return most * (1 + self._uniform()) / 2
