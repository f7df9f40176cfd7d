"""Certificates of a federation: its authority, what it signs, and requests to be signed.

Keys made here are elliptic (P-256, RFC 5480). A certificate names one identity; only a server's is
good for serving, all others are good for dialling, so that no worker can pose as the aggregator. Of
a request nothing is taken over but the public key: who it is for, the authority says.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlora.errors import FedLoraError, Reason, invalid_argument
from fedlora.identity.names import AccessRole, Identity, check_segment, identity_of_uri

__all__ = [
    "Authority",
    "Certified",
    "Key",
    "PublicKey",
    "authority_of",
    "certified",
    "certified_of_pem",
    "key_digest",
    "key_from_pem",
    "key_to_pem",
    "new_authority",
    "new_key",
    "read_request",
    "request_for",
    "to_pem",
]

Key: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
"""a private key; those made elsewhere may be RSA"""
PublicKey: TypeAlias = ec.EllipticCurvePublicKey

_AUTHORITY_URI = "spiffe://"
"""followed by the federation"""

_MAX_REQUEST_BYTES = 4096
"""of a request; one with a P-256 key has some 300"""

_CLOCK_SKEW = dt.timedelta(minutes=10)
"""by which the clock of who dials may be behind that of the authority"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What a certificate says."""

    identity: Identity | None
    """None for one that names nobody, such as an authority's"""
    not_before: float
    """seconds since 1970"""
    not_after: float
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """Who signs a federation's certificates."""

    federation: str
    certificate: x509.Certificate
    key: Key

    def issue(
        self,
        identity: Identity,
        public_key: PublicKey,
        *,
        now: dt.datetime,
        days: float,
        hosts: Sequence[str] = (),
    ) -> x509.Certificate:
        """Signs that a key is an identity's.

        Args:
            identity: of this authority's federation.
            public_key: its key.
            now: the certificate's first second; of a server's, ten minutes before it.
            days: how long it is good, but never longer than the authority's own.
            hosts: names and addresses at which a server is dialled.

        Raises:
            FedLoraError: INVALID_ARGUMENT for an identity of another federation, for a server
                without hosts, or hosts of anybody else.
        """
        if identity.federation != self.federation:
            raise invalid_argument(
                f"this authority is of the federation {self.federation!r}, and cannot issue a "
                f"certificate for {identity}"
            )
        serves = identity.role is AccessRole.SERVER
        if serves != bool(hosts):
            raise invalid_argument(
                "a server's certificate, and no other, names the hosts at which it is dialled, "
                f"got {list(hosts)} for {identity}"
            )
        # Whoever dials checks a server with a clock of its own. The others' are checked by the
        # server, where the time of issue decides whether a revocation came later.
        begins = now - _CLOCK_SKEW if serves else now
        usage = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
        names = [_general_name(host) for host in hosts]
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(identity.name))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(
                min(now + dt.timedelta(days=days), self.certificate.not_valid_after_utc)
            )
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri), *names]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        return builder.sign(self.key, hashes.SHA256())


def new_authority(federation: str, *, now: dt.datetime, days: float) -> Authority:
    """A new authority of a federation, signed by itself."""
    key, subject = new_key(), _subject(f"{check_segment('federation', federation)} authority")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(_AUTHORITY_URI + federation)]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(federation=federation, certificate=certificate, key=key)


def authority_of(certificate: x509.Certificate, key: Key) -> Authority:
    """An authority from its certificate and key.

    Raises:
        FedLoraError: INVALID_CONFIG for a certificate that is no authority's of a federation.
    """
    uris = _uris(certificate)
    federation = uris[0].removeprefix(_AUTHORITY_URI) if len(uris) == 1 else ""
    if not federation or "/" in federation:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"the authority's certificate must have the one URI spiffe://FEDERATION, got {uris}",
            hint="Make an authority with `fedlora pki init`",
        )
    return Authority(federation=federation, certificate=certificate, key=key)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def request_for(key: Key) -> bytes:
    """A request to certify a key, PEM. It says nothing of who asks: the join token does."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def read_request(pem: bytes) -> PublicKey:
    """The public key of a request, whose sender holds the private one.

    Raises:
        FedLoraError: INVALID_ARGUMENT for anything else than a request with a P-256 key.
    """
    if len(pem) > _MAX_REQUEST_BYTES:
        raise invalid_argument(
            f"a certificate request has at most {_MAX_REQUEST_BYTES} bytes, got {len(pem)}"
        )
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm) as error:
        raise invalid_argument("this is no certificate request in PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise invalid_argument("a certificate request must be for a P-256 key")
    if not is_signed:
        raise invalid_argument("the certificate request is not signed with its own key")
    return key


def certified(certificate: x509.Certificate) -> Certified:
    """What a certificate says; who it names counts only if it is the only URI in it."""
    uris = _uris(certificate)
    return Certified(
        identity=identity_of_uri(uris[0]) if len(uris) == 1 else None,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        certificate=certificate,
    )


def certified_of_pem(pem: bytes) -> Certified:
    """What a certificate in text says; ValueError if it is none."""
    return certified(x509.load_pem_x509_certificate(pem))


def to_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as text."""
    return certificate.public_bytes(Encoding.PEM)


def key_to_pem(key: Key) -> bytes:
    """A private key as text, PKCS #8, not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def key_digest(key: PublicKey) -> str:
    """SHA-256 of a public key, hexadecimal."""
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def key_from_pem(pem: bytes) -> Key:
    """A private key from text.

    Raises:
        FedLoraError: INVALID_CONFIG for anything but an elliptic or RSA key without a passphrase.
    """
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedLoraError(Reason.INVALID_CONFIG, f"this is no private key: {error}") from error
    if not isinstance(key, Key):
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"the key must be an elliptic or an RSA one, got {type(key).__name__}",
        )
    return key


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _subject(name: str) -> x509.Name:
    # A common name has at most 64 characters (RFC 5280), and nobody relies on it.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
