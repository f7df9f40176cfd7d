"""Session tokens: opaque to workers, checked without keeping them.

A token names its run, worker and epoch, so that a process whose name was taken by a newer one
learns that it is fenced (and must end) rather than unknown (and should register again): two
processes of one name can never fence each other in turn.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from aggregator_service.rounds.state import WorkerRecord
from fedlora.errors import FedLoraError, Reason

__all__ = ["SessionToken", "check_session", "issue", "parse", "unknown_session"]

_SECRET_BYTES = 24


@dataclass(frozen=True, slots=True)
class SessionToken:
    """A token taken apart."""

    run_id: str
    worker: str
    epoch: int
    digest: str
    """SHA-256 of the whole token, hexadecimal"""


def issue(run_id: str, worker: str, epoch: int) -> tuple[str, str]:
    """A new token and its digest."""
    token = f"{epoch}/{secrets.token_urlsafe(_SECRET_BYTES)}/{run_id}/{worker}"
    return token, _digest(token)


# A worker brings the same one with each beat.
@functools.lru_cache(maxsize=4096)
def parse(token: str) -> SessionToken:
    """Takes a token apart; UNKNOWN_SESSION for anything that never was one."""
    parts = token.split("/", 3)
    if len(token) > 512 or len(parts) != 4 or not (parts[0].isascii() and parts[0].isdigit()):
        raise unknown_session()
    return SessionToken(
        run_id=parts[2], worker=parts[3], epoch=int(parts[0][:9]), digest=_digest(token)
    )


def check_session(token: SessionToken, record: WorkerRecord | None) -> None:
    """Raises SESSION_FENCED or UNKNOWN_SESSION unless the token is the worker's current one."""
    if record is None:
        raise unknown_session()
    if hmac.compare_digest(record.session_hash, token.digest):
        return
    if token.epoch < record.epoch:
        raise FedLoraError(
            Reason.SESSION_FENCED,
            f"a newer process has registered as worker {record.name!r}",
            hint="Give every worker process a name of its own",
        )
    raise unknown_session()


def unknown_session() -> FedLoraError:
    """The error for a token this server never issued."""
    return FedLoraError(
        Reason.UNKNOWN_SESSION, "this server knows no such session", hint="Register again"
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
