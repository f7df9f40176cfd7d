"""Becomes a member of a federation, and stays one: the key is made here and never leaves."""

from __future__ import annotations

import time
from pathlib import Path

import grpc

from client_worker.transport.calls import CONTROL_SECONDS
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.bearer import token_digest
from fedlora.identity.certificates import (
    Key,
    certified_of_pem,
    key_from_pem,
    key_to_pem,
    new_key,
    request_for,
)
from fedlora.identity.folder import read_authorities, write_identity
from fedlora.identity.invitation import InvitationFile
from fedlora.identity.names import Identity
from fedlora.identity.swap import holds, read_file, replace_files
from fedlora.proto.v1 import identity_pb2 as pb
from fedlora.proto.v1 import identity_pb2_grpc
from fedlora.rpc.channel import client_options
from fedlora.rpc.security import ClientSecurity
from fedlora.rpc.status import from_rpc_error

__all__ = ["enrol", "renew"]

_KEY_NAME = ".enrolling-{}.key"
"""in the identity folder until there is a certificate for it"""

_TRIES = 3
_LOST = (Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED)
"""an answer that may have been given; the same key gets the same certificate again"""


def enrol(invitation: InvitationFile, folder: Path) -> Identity:
    """Redeems an invitation, and writes the identity that it is exchanged for.

    Args:
        invitation: good still, and not redeemed.
        folder: gets ca.crt, tls.crt and tls.key. Whoever is killed meanwhile can do it again
            with the same folder and the same invitation, for as long as that is good.

    Raises:
        FedLoraError: INVALID_CONFIG for an invitation that has expired; UNAUTHENTICATED for one
            that the server does not take; UNAVAILABLE if there is no answer.
    """
    if invitation.expires_at <= time.time():
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"the invitation for {invitation.name!r} has expired",
            hint="Ask the federation's operator for another: `fedlora pki token`",
        )
    key = _own_key(folder, invitation.join_token)
    authorities = invitation.authorities_pem.encode()
    credentials = grpc.ssl_channel_credentials(authorities)
    options = client_options()
    with grpc.secure_channel(invitation.enrolment, credentials, options=options) as channel:
        answer = _enrolled(channel, invitation, request_for(key))
    write_identity(
        folder, authorities_pem=authorities, certificates_pem=answer.certificate, key=key
    )
    for spent in folder.glob(_KEY_NAME.format("*")):
        spent.unlink()
    return _identity(answer.certificate)


def _own_key(folder: Path, join_token: str) -> Key:
    """The key to redeem a token with: the same again for who was killed before it had the answer.

    Each token gets a key of its own, so that one that was lost is not certified anew.
    """
    name = _KEY_NAME.format(token_digest(join_token)[:16])
    if holds(folder, name):
        return key_from_pem(read_file(folder, name))
    key = new_key()
    replace_files(folder, {name: key_to_pem(key)})
    return key


def _enrolled(
    channel: grpc.Channel, invitation: InvitationFile, request_pem: bytes
) -> pb.EnrolResponse:
    """The server's answer; asked for again if it was lost, since the token is spent by then."""
    stub = identity_pb2_grpc.EnrolmentServiceStub(channel)
    request = pb.EnrolRequest(join_token=invitation.join_token, certificate_request=request_pem)
    for left in reversed(range(_TRIES)):
        try:
            return stub.Enrol(request, timeout=CONTROL_SECONDS)
        except grpc.RpcError as error:
            told = from_rpc_error(error, peer=invitation.enrolment)
            if not left or told.reason not in _LOST:
                raise told from error
    raise AssertionError("the last try returns or raises")


def renew(server: str, folder: Path) -> float:
    """Replaces the identity of a folder by one with a new key.

    Args:
        server: host:port.
        folder: with an identity that is still good.

    Returns:
        The end of the new certificate, in seconds since 1970.
    """
    key = new_key()
    with ClientSecurity(identity_dir=folder).dial(server) as channel:
        try:
            answer = identity_pb2_grpc.IdentityServiceStub(channel).Renew(
                pb.RenewRequest(certificate_request=request_for(key)), timeout=CONTROL_SECONDS
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, peer=server) from error
    write_identity(
        folder,
        authorities_pem=read_authorities(folder),
        certificates_pem=answer.certificate,
        key=key,
    )
    return certified_of_pem(answer.certificate).not_after


def _identity(pem: bytes) -> Identity:
    identity = certified_of_pem(pem).identity
    if identity is None:
        raise FedLoraError(Reason.INTERNAL, "the server's certificate names nobody")
    return identity
