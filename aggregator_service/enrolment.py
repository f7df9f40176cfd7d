"""Makes members of a federation: invites, certifies, renews, revokes.

A join token is 256 random bits, of which the server keeps a digest. It is good once, for a limited
time, and for one role and name: what the request itself says of its sender counts for nothing. Who
asks again with the same key, because the answer was lost, gets the same certificate; who comes with
another key gets none.

A revocation is a moment: what was issued to a name up to then is refused, whoever signed it, and
what is issued afterwards is not. So no list of serial numbers is needed, and whoever lost a key is
invited again under the old name.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import secrets
from collections.abc import Callable
from dataclasses import replace

import structlog

from aggregator_service.members import Invitation
from aggregator_service.store.threaded import ThreadedStore
from fedlora.errors import FedLoraError, Reason, invalid_argument
from fedlora.identity.bearer import token_digest
from fedlora.identity.certificates import (
    Authority,
    PublicKey,
    certified,
    key_digest,
    read_request,
    to_pem,
)
from fedlora.identity.members import Invite, Invited, Member, Revocation
from fedlora.identity.names import AccessRole, Identity

__all__ = ["Enrolment", "not_authenticated"]

log = structlog.get_logger(__name__)

_TOKEN_BYTES = 32

MAX_INVITATION_SECONDS = 30 * 86400.0
"""longest life of a join token"""


class Enrolment:
    """The members of one federation.

    Args:
        store: keeps them.
        authority: signs; None for a server that only revokes.
        certificate_days: how long a certificate is good.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        store: ThreadedStore,
        authority: Authority | None,
        *,
        certificate_days: float,
        wall: Callable[[], float],
    ) -> None:
        self._store = store
        self._authority = authority
        self._days = certificate_days
        self._wall = wall
        self._revoked: dict[tuple[AccessRole, str], float] = {}

    async def open(self) -> None:
        """Reads the revocations."""
        self._revoked = {
            (m.role, m.name): m.revoked_at for m in await self.members() if m.revoked_at is not None
        }

    def is_revoked(self, role: AccessRole, name: str, issued_at: float) -> bool:
        """Whether something issued to a name at that time, in seconds since 1970, is refused."""
        return issued_at <= self._revoked.get((role, name), -math.inf)

    async def members(self) -> tuple[Member, ...]:
        """All that were ever certified or revoked here."""
        return await self._store.call(lambda s: s.members.members())

    async def invite(self, invite: Invite) -> Invited:
        """Makes a join token.

        Raises:
            FedLoraError: INVALID_ARGUMENT for a role, name or time that cannot be;
                WRONG_PHASE if the server has no authority.
        """
        authority = self._need_authority()
        if invite.role is AccessRole.SERVER:
            raise invalid_argument(
                "nobody is invited to be a server", "Make its identity with `fedlora pki issue`"
            )
        if not 0 < invite.seconds <= MAX_INVITATION_SECONDS:
            raise invalid_argument(
                f"a join token is good for up to {MAX_INVITATION_SECONDS:g} seconds, got "
                f"{invite.seconds:g}"
            )
        identity = Identity(federation=authority.federation, role=invite.role, name=invite.name)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        invitation = Invitation(
            token_digest=token_digest(token),
            role=invite.role,
            name=invite.name,
            expires_at=self._wall() + invite.seconds,
        )
        await self._store.call(lambda s: s.members.invite(invitation))
        log.info("invited", identity=identity.uri)
        return Invited(join_token=token, expires_at=invitation.expires_at)

    async def enrol(self, token: str, request_pem: bytes) -> bytes:
        """Redeems a join token; returns the certificate, PEM.

        Raises:
            FedLoraError: UNAUTHENTICATED for a token that is not good, whatever the reason;
                INVALID_ARGUMENT for a request that is none.
        """
        digest = token_digest(token)
        invitation = await self._store.call(lambda s: s.members.invitation(digest))
        if invitation is None:
            raise _refused("an unknown token")
        if invitation.expires_at <= self._wall():
            raise _refused("an expired token", invitation)
        public_key = read_request(request_pem)
        certificate_pem, until = await self._issue(invitation.role, invitation.name, public_key)
        redeemed = replace(
            invitation, key_digest=key_digest(public_key), certificate_pem=certificate_pem.decode()
        )
        if await self._store.call(lambda s: s.members.redeem(redeemed, certified_until=until)):
            log.info("enrolled", role=invitation.role.value, name=invitation.name)
            return certificate_pem
        first = await self._store.call(lambda s: s.members.invitation(digest))
        if first is None or first.key_digest != redeemed.key_digest:
            raise _refused("a token that was redeemed, or revoked, before", invitation)
        return first.certificate_pem.encode()

    async def renew(self, role: AccessRole, name: str, request_pem: bytes) -> bytes:
        """A new certificate for one whose old one is still good, PEM."""
        certificate_pem, until = await self._issue(role, name, read_request(request_pem))
        await self._store.call(lambda s: s.members.certify(role, name, until=until))
        log.info("renewed", role=role.value, name=name)
        return certificate_pem

    async def revoke(self, revocation: Revocation) -> None:
        """Refuses from now on what was issued to a name until now."""
        role, name = revocation.role, revocation.name
        at = float(math.floor(self._wall()))
        # At once: what a busy store makes wait could be renewed meanwhile, for a later second. And
        # stored whether or not the operator waits for it.
        self._revoked[role, name] = at
        await asyncio.shield(self._store.call(lambda s: s.members.revoke(role, name, at=at)))
        log.warning("revoked", role=role.value, name=name)

    async def _issue(
        self, role: AccessRole, name: str, public_key: PublicKey
    ) -> tuple[bytes, float]:
        authority = self._need_authority()
        # Certificates count whole seconds: one of the second of a revocation would be refused.
        if self.is_revoked(role, name, math.floor(self._wall())):
            await asyncio.sleep(1.0 - self._wall() % 1.0)
        identity = Identity(federation=authority.federation, role=role, name=name)
        now = dt.datetime.fromtimestamp(math.floor(self._wall()), dt.UTC)
        certificate = authority.issue(identity, public_key, now=now, days=self._days)
        return to_pem(certificate), certified(certificate).not_after

    def _need_authority(self) -> Authority:
        if self._authority is None:
            raise FedLoraError(
                Reason.WRONG_PHASE,
                "this server does not sign certificates: it has no authority",
                hint="Set server.authority_dir, or use `fedlora pki issue` where the authority is",
            )
        return self._authority


def _refused(why: str, invitation: Invitation | None = None) -> FedLoraError:
    log.warning("enrolment_refused", why=why, name=invitation.name if invitation else "")
    return not_authenticated()


def not_authenticated() -> FedLoraError:
    """What everybody is told whom the server does not know; nothing says why."""
    return FedLoraError(
        Reason.UNAUTHENTICATED,
        "not authenticated",
        hint="Ask the federation's operator; the server's log has the details",
    )
