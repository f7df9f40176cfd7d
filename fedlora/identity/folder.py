"""An identity on disk: `ca.crt`, `tls.crt` and `tls.key`, as Kubernetes names them.

`ca.crt` may hold several authorities, so that one can follow another. What is read is checked
before anything is dialled or served: a TLS handshake that fails tells nobody why.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.certificates import (
    Authority,
    Certified,
    Key,
    authority_of,
    certified,
    key_from_pem,
    key_to_pem,
    to_pem,
)
from fedlora.identity.names import Identity
from fedlora.identity.swap import file_status, read_file, replace_files

__all__ = [
    "AUTHORITY_CERTIFICATE",
    "AUTHORITY_KEY",
    "CERTIFICATE",
    "KEY",
    "IdentityFiles",
    "certificate_end",
    "read_authorities",
    "read_authority",
    "read_identity",
    "stamp",
    "write_authority",
    "write_identity",
]

AUTHORITY_CERTIFICATE = "ca.crt"
CERTIFICATE = "tls.crt"
KEY = "tls.key"
AUTHORITY_KEY = "ca.key"
"""of an authority, in a folder of its own"""

_SWAP_TRIES = 20
_SWAP_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFiles:
    """The contents of an identity folder."""

    authorities_pem: bytes
    certificates_pem: bytes
    """its own certificate, and any between it and an authority"""
    key_pem: bytes
    certified: Certified
    identity: Identity


def read_identity(folder: Path, *, now: float) -> IdentityFiles:
    """Reads and checks an identity folder.

    Args:
        folder: with ca.crt, tls.crt and tls.key.
        now: seconds since 1970.

    Raises:
        FedLoraError: INVALID_CONFIG for a file that is missing or is not what it should be, a key
            that is not the certificate's, a certificate that names nobody, or is not good now.
    """
    authorities, certificates, key, own = _read_whole(folder)
    if own.identity is None:
        raise _invalid(
            folder / CERTIFICATE,
            "names nobody of a federation: expected one URI spiffe://FEDERATION/ROLE/NAME",
            "Make identities with `fedlora pki issue`, or give cert-manager that URI",
        )
    if not own.not_before <= now < own.not_after:
        when = "has expired since" if now >= own.not_after else "is not good before"
        edge = own.not_after if now >= own.not_after else own.not_before
        raise _invalid(
            folder / CERTIFICATE,
            f"{when} {time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(edge))} UTC",
            "Get a new one (`fedlora worker enroll`, `fedlora pki issue`), or set the clock right",
        )
    return IdentityFiles(
        authorities_pem=authorities,
        certificates_pem=certificates,
        key_pem=key,
        certified=own,
        identity=own.identity,
    )


def read_authorities(folder: Path) -> bytes:
    """The authorities of a folder, PEM; INVALID_CONFIG if there are none."""
    pem = _read(folder, AUTHORITY_CERTIFICATE)
    _certificates(folder / AUTHORITY_CERTIFICATE, pem)
    return pem


def read_authority(folder: Path) -> Authority:
    """An authority with its key, from `ca.crt` and `ca.key`.

    Raises:
        FedLoraError: INVALID_CONFIG for files that are missing, or not those of an authority.
    """
    file = folder / AUTHORITY_CERTIFICATE
    certificate = _certificates(file, _read(folder, AUTHORITY_CERTIFICATE))[0]
    key = _key(folder / AUTHORITY_KEY, _read(folder, AUTHORITY_KEY))
    if key.public_key() != certificate.public_key():
        raise _invalid(folder / AUTHORITY_KEY, f"is not the key of {file}", "")
    return authority_of(certificate, key)


def write_identity(
    folder: Path, *, authorities_pem: bytes, certificates_pem: bytes, key: Key
) -> None:
    """Makes or renews an identity folder; the key is readable for its owner alone."""
    replace_files(
        folder,
        {
            AUTHORITY_CERTIFICATE: authorities_pem,
            KEY: key_to_pem(key),
            CERTIFICATE: certificates_pem,
        },
    )


def write_authority(folder: Path, authority: Authority) -> None:
    """Makes the folder of an authority."""
    replace_files(
        folder,
        {
            AUTHORITY_CERTIFICATE: to_pem(authority.certificate),
            AUTHORITY_KEY: key_to_pem(authority.key),
        },
    )


def stamp(folder: Path) -> tuple[tuple[int, int], ...]:
    """What changes whenever a file of the folder does."""
    found = []
    for name in (AUTHORITY_CERTIFICATE, CERTIFICATE, KEY):
        try:
            status = file_status(folder, name)
        except OSError:
            continue
        found.append((status.st_ino, status.st_mtime_ns))
    return tuple(found)


def certificate_end(folder: Path | None) -> float | None:
    """When the certificate in a folder ends, over already or not, in seconds since 1970.

    For those who only look: None without a folder, or while there is no certificate to be read.
    """
    if folder is None:
        return None
    try:
        pem = _read(folder, CERTIFICATE)
        return certified(_certificates(folder / CERTIFICATE, pem)[0]).not_after
    except FedLoraError:
        return None


def _read_whole(folder: Path) -> tuple[bytes, bytes, bytes, Certified]:
    """Authorities, certificate and key, read anew while somebody replaces them."""
    for left in reversed(range(_SWAP_TRIES)):
        before = stamp(folder)
        authorities = read_authorities(folder)
        pem, key_pem = _read(folder, CERTIFICATE), _read(folder, KEY)
        own = _certificates(folder / CERTIFICATE, pem)[0]
        key = _key(folder / KEY, key_pem)
        if key.public_key() == own.public_key() and stamp(folder) == before:
            return authorities, pem, key_pem, certified(own)
        if left:
            time.sleep(_SWAP_SECONDS)
    raise _invalid(folder / KEY, f"is not the key of {folder / CERTIFICATE}", "")


def _certificates(file: Path, pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise _invalid(file, f"holds no certificate in PEM: {error}", "") from error


def _key(file: Path, pem: bytes) -> Key:
    try:
        return key_from_pem(pem)
    except FedLoraError as error:
        raise _invalid(file, f"cannot be used: {error.message}", "") from error


def _read(folder: Path, name: str) -> bytes:
    try:
        return read_file(folder, name)
    except OSError as error:
        raise _invalid(
            folder / name,
            f"cannot be read: {error.strerror}",
            "An identity folder has ca.crt, tls.crt and tls.key; `fedlora pki` and `fedlora worker "
            "enroll` make one",
        ) from error


def _invalid(file: Path, what: str, hint: str) -> FedLoraError:
    return FedLoraError(Reason.INVALID_CONFIG, f"{file} {what}", hint=hint)
