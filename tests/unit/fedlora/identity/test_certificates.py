"""What an authority signs, and what it refuses to."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.certificates import (
    certified,
    new_authority,
    new_key,
    read_request,
    request_for,
)
from fedlora.identity.names import AccessRole, Identity, identity_of_uri

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def authority():
    return new_authority("lab", now=NOW, days=100)


def issued(authority, role=AccessRole.WORKER, *, days=10.0, hosts=(), federation="lab"):
    identity = Identity(federation=federation, role=role, name="n-1")
    return authority.issue(identity, new_key().public_key(), now=NOW, days=days, hosts=hosts)


def test_a_certificate_says_who_it_is_of_and_is_the_authoritys(authority):
    certificate = issued(authority)
    found = certified(certificate)
    assert found.identity == Identity(federation="lab", role=AccessRole.WORKER, name="n-1")
    assert found.not_before == NOW.timestamp()
    assert found.not_after == NOW.timestamp() + 10 * 86400
    certificate.verify_directly_issued_by(authority.certificate)
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(new_authority("lab", now=NOW, days=1).certificate)


def test_no_certificate_outlives_its_authority(authority):
    end = certified(issued(authority, days=1000)).not_after
    assert end == NOW.timestamp() + 100 * 86400


@pytest.mark.parametrize("role", list(AccessRole))
def test_only_a_servers_certificate_is_good_for_serving_and_none_for_signing(authority, role):
    serves = role is AccessRole.SERVER
    certificate = issued(authority, role, hosts=["a.example", "10.0.0.1"] if serves else ())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    wanted = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
    assert list(usage) == [wanted]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == (["a.example"] if serves else [])
    addresses = [str(a) for a in names.get_values_for_type(x509.IPAddress)]
    assert addresses == (["10.0.0.1"] if serves else [])


@pytest.mark.parametrize(
    ("role", "hosts", "federation", "text"),
    [
        (AccessRole.SERVER, (), "lab", "names the hosts"),
        (AccessRole.WORKER, ("h",), "lab", "names the hosts"),
        (AccessRole.WORKER, (), "other", "of the federation 'lab'"),
    ],
)
def test_an_authority_refuses_what_makes_no_sense(authority, role, hosts, federation, text):
    with pytest.raises(FedLoraError, match=text) as caught:
        issued(authority, role, hosts=hosts, federation=federation)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def signed_by(key, algorithm=None) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm or hashes.SHA256()).public_bytes(Encoding.PEM)


def forged() -> bytes:
    """A request whose signature is not that of its key."""
    der = bytearray(x509.load_pem_x509_csr(request_for(new_key())).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


def test_the_key_of_a_request_is_the_one_that_signed_it():
    key = new_key()
    assert read_request(request_for(key)) == key.public_key()


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: b"",
        lambda: b"\xff" * 300,
        lambda: b"x" * 5000,
        lambda: signed_by(rsa.generate_private_key(65537, 2048)),
        lambda: signed_by(ec.generate_private_key(ec.SECP384R1())),
        forged,
    ],
    ids=["empty", "noise", "long", "rsa", "another curve", "forged"],
)
def test_what_is_no_request_for_a_p256_key_is_refused(request_of):
    with pytest.raises(FedLoraError) as caught:
        read_request(request_of())
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "https://lab/worker/w",
        "spiffe://lab/worker",
        "spiffe://lab/worker/w/x",
        "spiffe://lab/king/w",
        "spiffe://lab/worker/..%2f",
        "spiffe:///worker/w",
        "spiffe://lab/WORKER/w",
    ],
)
def test_a_uri_that_names_nobody(uri: str):
    assert identity_of_uri(uri) is None


def test_an_identity_is_its_uri():
    identity = Identity(federation="lab", role=AccessRole.OBSERVER, name="Site_A.1")
    assert identity_of_uri(identity.uri) == identity
    for name in ("", "a/b", "-a", "a" * 129, "a b", "a\n"):
        with pytest.raises(FedLoraError):
            Identity(federation="lab", role=AccessRole.WORKER, name=name)


def test_a_certificate_of_two_names_is_nobodys(authority):
    key = new_key()
    names = [x509.UniformResourceIdentifier(f"spiffe://lab/worker/w-{i}") for i in range(2)]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    assert certified(certificate).identity is None
