"""Finds out who a call is from: by the connection's certificate, or by a bearer token.

Both are looked at for every call: a connection may outlive the certificate it was made with, and
its owner may be revoked while it stands.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from aggregator_service.caller import Caller
from fedlora.errors import FedLoraError
from fedlora.identity.bearer import BearerToken, read_bearer_tokens, token_digest
from fedlora.identity.certificates import certified_of_pem
from fedlora.identity.names import AccessRole

__all__ = ["Callers", "CertificateCallers", "IsRevoked", "TokenCallers"]

log = structlog.get_logger(__name__)

IsRevoked = Callable[[AccessRole, str, float], bool]
"""whether what was issued to a role and name at a time is refused"""

_BEARER = "Bearer "
_READ_AGAIN_SECONDS = 1.0


class Callers(Protocol):
    """Tells callers apart."""

    def identify(
        self, auth_context: Mapping[str, Iterable[bytes]], metadata: Mapping[str, str | bytes]
    ) -> Caller | str:
        """The caller, or why there is none, for the log."""
        ...

    def refusal(self, caller: Caller) -> str:
        """Why a caller is nobody any longer; empty while he is somebody."""
        ...


class _Lapsing:
    """What expires, and can be revoked."""

    def __init__(self, is_revoked: IsRevoked, wall: Callable[[], float]) -> None:
        self._is_revoked = is_revoked
        self._wall = wall

    def refusal(self, caller: Caller) -> str:
        """See Callers."""
        if self._wall() >= caller.expires_at:
            return "expired"
        if self._is_revoked(caller.role, caller.name, caller.issued_at):
            return "revoked"
        return ""


class CertificateCallers(_Lapsing):
    """By client certificate; the handshake has checked who signed it.

    Args:
        federation: whose members are known.
        is_revoked: tells.
        wall: seconds since 1970.
    """

    def __init__(
        self, federation: str, is_revoked: IsRevoked, wall: Callable[[], float] = time.time
    ) -> None:
        super().__init__(is_revoked, wall)
        self._federation = federation

    def identify(
        self,
        auth_context: Mapping[str, Iterable[bytes]],
        metadata: Mapping[str, str | bytes],  # noqa: ARG002 - tokens count for nothing here
    ) -> Caller | str:
        """See Callers."""
        pem = next(iter(auth_context.get("x509_pem_cert", ())), None)
        if pem is None:
            return "no certificate"
        found = _certified(pem)
        if found.identity is None or found.identity.federation != self._federation:
            return "a certificate of no member"
        caller = Caller(
            role=found.identity.role,
            name=found.identity.name,
            issued_at=found.not_before,
            expires_at=found.not_after,
        )
        return self.refusal(caller) or caller


# A call brings its connection's certificate anew each time: reading it costs more than a heartbeat.
_certified = functools.lru_cache(maxsize=4096)(certified_of_pem)


class TokenCallers(_Lapsing):
    """By bearer token, from a file of their digests that is read again when it changes.

    Args:
        file: as `fedlora.identity.bearer` writes it.
        is_revoked: tells.
        wall: seconds since 1970.
    """

    def __init__(
        self, file: Path, is_revoked: IsRevoked, wall: Callable[[], float] = time.time
    ) -> None:
        super().__init__(is_revoked, wall)
        self._file = file
        self._read(read_bearer_tokens(file))
        self._stamp = file.stat().st_mtime_ns
        self._looked = time.monotonic()

    def identify(
        self,
        auth_context: Mapping[str, Iterable[bytes]],  # noqa: ARG002 - there is no certificate
        metadata: Mapping[str, str | bytes],
    ) -> Caller | str:
        """See Callers."""
        header = metadata.get("authorization", "")
        if not isinstance(header, str) or not header.startswith(_BEARER):
            return "no bearer token"
        self._look()
        found = self._tokens.get(token_digest(header.removeprefix(_BEARER)))
        if found is None:
            return "an unknown bearer token"
        caller = Caller(
            role=found.role,
            name=found.name,
            issued_at=found.issued_at,
            expires_at=found.expires_at,
        )
        return self.refusal(caller) or caller

    def refusal(self, caller: Caller) -> str:
        """See Callers; a token that is no longer in the file is as good as revoked."""
        self._look()
        if (caller.role, caller.name, caller.issued_at) not in self._held:
            return "removed"
        return super().refusal(caller)

    def _look(self) -> None:
        """Reads the file again if it has changed, at most once a second."""
        now = time.monotonic()
        if now - self._looked <= _READ_AGAIN_SECONDS:
            return
        self._looked = now
        try:
            stamp = self._file.stat().st_mtime_ns
            if stamp != self._stamp:
                self._read(read_bearer_tokens(self._file))
                self._stamp = stamp
        except (OSError, FedLoraError) as error:
            # Somebody may be writing: what was good a second ago is good still.
            log.warning("tokens_not_read", error=str(error))

    def _read(self, tokens: Mapping[str, BearerToken]) -> None:
        self._tokens = tokens
        self._held = {(t.role, t.name, t.issued_at) for t in tokens.values()}
