"""Who a call is from: set where it comes in, asked where a session is found.

A context variable, since all that is done for a call is done in its own task, and what lies between
has no business with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.names import AccessRole

__all__ = ["Caller", "calling", "check_is_worker", "current_caller"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Somebody whose identity has been proved."""

    role: AccessRole
    name: str
    issued_at: float
    """of what proves it; seconds since 1970, as the next"""
    expires_at: float


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


@contextmanager
def calling(caller: Caller | None) -> Iterator[None]:
    """Within, the call is `caller`'s; None where nobody needs to prove anything."""
    before = _CALLER.get()
    _CALLER.set(caller)
    try:
        yield
    finally:
        # By no token: a stream that is not read to its end is closed in another context.
        _CALLER.set(before)


def current_caller() -> Caller | None:
    """Whose call this is; None where nobody needs to prove anything."""
    return _CALLER.get()


def check_is_worker(name: str) -> None:
    """Raises PERMISSION_DENIED if the call is of somebody else than the worker of that name."""
    caller = _CALLER.get()
    if caller is not None and (caller.role, caller.name) != (AccessRole.WORKER, name):
        raise FedLoraError(
            Reason.PERMISSION_DENIED,
            f"{caller.role.value} {caller.name!r} acts for another worker",
            hint="A worker's name is that of its certificate: leave worker.name out",
        )
