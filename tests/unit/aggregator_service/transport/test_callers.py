"""Who a call is from, at times and with files that no handshake would show."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.identities import Federation

from aggregator_service.caller import Caller
from aggregator_service.transport.callers import CertificateCallers, TokenCallers
from fedlora.errors import FedLoraError
from fedlora.identity.bearer import add_bearer_token, read_bearer_tokens
from fedlora.identity.names import AccessRole

HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def never(*_: object) -> bool:
    return False


def shown(folder: Path) -> dict[str, list[bytes]]:
    return {"x509_pem_cert": [(folder / "tls.crt").read_bytes()]}


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    return Federation(tmp_path_factory.mktemp("federation"))


def test_a_certificate_ends_while_its_connection_stands(federation):
    clock = Clock()
    callers = CertificateCallers("lab", never, clock)
    auth = shown(federation.member(AccessRole.WORKER, "w-1", days=1))
    caller = callers.identify(auth, {})
    assert isinstance(caller, Caller)
    assert (caller.role, caller.name) == (AccessRole.WORKER, "w-1")
    assert callers.refusal(caller) == ""
    clock.now += 25 * HOUR
    assert callers.refusal(caller) == "expired"
    assert callers.identify(auth, {}) == "expired"


def test_of_a_revoked_name_only_what_was_issued_before_is_refused(federation):
    revoked_at = time.time() - HOUR

    def is_revoked(role: AccessRole, name: str, issued_at: float) -> bool:
        return (role, name) == (AccessRole.WORKER, "w-1") and issued_at <= revoked_at

    callers = CertificateCallers("lab", is_revoked)
    old = federation.member(AccessRole.WORKER, "w-1", begins=-2 * HOUR, folder="old")
    new = federation.member(AccessRole.WORKER, "w-1", folder="new")
    operator = federation.member(AccessRole.OPERATOR, "w-1", begins=-2 * HOUR)
    assert callers.identify(shown(old), {}) == "revoked"
    assert isinstance(callers.identify(shown(new), {}), Caller)
    assert isinstance(callers.identify(shown(operator), {}), Caller), "another role"


def test_a_member_of_another_federation_of_one_authority_is_nobody(federation):
    callers = CertificateCallers("elsewhere", never)
    auth = shown(federation.member(AccessRole.WORKER, "w-1"))
    assert callers.identify(auth, {}) == "a certificate of no member"
    assert callers.identify({}, {"authorization": "Bearer x"}) == "no certificate"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens"


def bearing(token: str) -> dict[str, str | bytes]:
    return {"authorization": f"Bearer {token}"}


def test_a_bearer_token_stands_for_its_line_until_it_ends(file: Path):
    clock = Clock()
    token = add_bearer_token(
        file, AccessRole.WORKER, "w-1", issued_at=clock.now, expires_at=clock.now + HOUR
    )
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    callers = TokenCallers(file, never, clock)
    caller = callers.identify({}, bearing(token))
    assert isinstance(caller, Caller)
    assert (caller.role, caller.name) == (AccessRole.WORKER, "w-1")
    for metadata in ({}, bearing(""), bearing(token + "x"), {"authorization": token}):
        assert isinstance(callers.identify({}, metadata), str)
    clock.now += HOUR + 1
    assert callers.identify({}, bearing(token)) == "expired"


def test_taking_a_line_out_revokes_its_token(file: Path, monkeypatch):
    monkeypatch.setattr("aggregator_service.transport.callers._READ_AGAIN_SECONDS", -1.0)
    now = time.time()
    one, two = (
        add_bearer_token(file, AccessRole.WORKER, n, issued_at=now, expires_at=now + HOUR)
        for n in ("w-1", "w-2")
    )
    callers = TokenCallers(file, never)
    first = callers.identify({}, bearing(one))
    assert isinstance(first, Caller)
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[1:]))
    os.utime(file, ns=(0, 0))
    assert callers.identify({}, bearing(one)) == "an unknown bearer token"
    assert callers.refusal(first) == "removed"
    assert isinstance(callers.identify({}, bearing(two)), Caller)
    file.write_text("half a li")
    os.utime(file, ns=(1, 1))
    assert isinstance(callers.identify({}, bearing(two)), Caller), "somebody may be writing"


@pytest.mark.parametrize("line", ["a b", "d worker w 1", "d king w 1 2", "d worker ../w 1 2"])
def test_a_line_that_is_no_token_is_named(file: Path, line: str):
    file.write_text(f"# tokens\n{line}\n")
    with pytest.raises(FedLoraError, match=f"line 2 of {file} is no bearer token"):
        read_bearer_tokens(file)
