"""Identity folders: what is wrong with one is said before anybody dials."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support.identities import Federation, moment

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.certificates import key_to_pem, new_key, to_pem
from fedlora.identity.folder import (
    certificate_end,
    read_authority,
    read_identity,
    stamp,
    write_identity,
)
from fedlora.identity.names import AccessRole, Identity
from fedlora.identity.setup import init_federation, issue_to


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


@pytest.fixture
def folder(federation) -> Path:
    return federation.member(AccessRole.WORKER, "w-1")


def refusal(folder: Path, now: float | None = None) -> str:
    with pytest.raises(FedLoraError) as caught:
        read_identity(folder, now=time.time() if now is None else now)
    assert caught.value.reason is Reason.INVALID_CONFIG
    return str(caught.value)


@pytest.mark.parametrize("name", ["ca.crt", "tls.crt", "tls.key"])
def test_a_file_that_is_missing_or_rubbish_is_named(folder: Path, name: str):
    (folder / name).write_bytes(b"rubbish")
    assert str(folder / name) in refusal(folder)
    (folder / name).unlink()
    assert f"{folder / name} cannot be read: No such file" in refusal(folder)


def test_a_certificate_that_is_not_good_now_says_since_when(folder: Path):
    assert "has expired since" in refusal(folder, time.time() + 2 * 86400)
    assert "is not good before" in refusal(folder, time.time() - 86400)


def test_a_key_of_another_certificate_is_refused(folder: Path, federation, monkeypatch):
    monkeypatch.setattr("fedlora.identity.folder._SWAP_SECONDS", 0.0)
    other = federation.member(AccessRole.WORKER, "w-2")
    (folder / "tls.key").write_bytes((other / "tls.key").read_bytes())
    assert "tls.key is not the key of" in refusal(folder)


def test_a_certificate_without_a_name_is_refused(folder: Path, federation):
    (folder / "tls.crt").write_bytes(to_pem(federation.authority.certificate))
    (folder / "tls.key").write_bytes(key_to_pem(federation.authority.key))
    assert "names nobody of a federation" in refusal(folder)


def test_a_reader_never_sees_half_a_renewal(folder: Path, federation):
    identity = Identity(federation="lab", role=AccessRole.WORKER, name="w-1")
    done = threading.Event()

    def renew() -> None:
        for _ in range(30):
            key = new_key()
            certificate = federation.authority.issue(
                identity,
                key.public_key(),
                now=moment(0),
                days=1,
            )
            write_identity(
                folder,
                authorities_pem=(federation.authority_dir / "ca.crt").read_bytes(),
                certificates_pem=to_pem(certificate),
                key=key,
            )
        done.set()

    before, writer = stamp(folder), threading.Thread(target=renew)
    writer.start()
    while not done.is_set():
        assert read_identity(folder, now=time.time() + 1).identity == identity
    writer.join()
    assert stamp(folder) != before
    assert not list(folder.glob(".*")), "nothing half written is left"


def test_a_new_federation_has_a_server_and_an_operator(tmp_path: Path):
    init_federation(tmp_path / "f", federation="lab", server_names=["localhost"], days=10)
    now = time.time()
    found = {n: read_identity(tmp_path / "f" / n, now=now).identity for n in ("server", "operator")}
    assert found["server"].role is AccessRole.SERVER
    assert found["operator"].uri == "spiffe://lab/operator/operator"
    issue_to(tmp_path / "w", tmp_path / "f" / "authority", role=AccessRole.WORKER, name="w", days=1)
    assert read_identity(tmp_path / "w", now=time.time()).identity.name == "w"
    for key in tmp_path.rglob("*.key"):
        assert key.stat().st_mode & 0o777 == 0o600, key


def test_a_second_authority_in_one_folder_is_refused(tmp_path: Path):
    init_federation(tmp_path, federation="lab", server_names=["localhost"], days=10)
    before = (tmp_path / "authority" / "ca.key").read_bytes()
    with pytest.raises(FedLoraError, match="has an authority"):
        init_federation(tmp_path, federation="lab", server_names=["localhost"], days=10)
    assert (tmp_path / "authority" / "ca.key").read_bytes() == before


def test_a_member_is_no_authority(folder: Path):
    (folder / "ca.crt").write_bytes((folder / "tls.crt").read_bytes())
    (folder / "ca.key").write_bytes((folder / "tls.key").read_bytes())
    with pytest.raises(FedLoraError, match="must have the one URI spiffe://FEDERATION"):
        read_authority(folder)


def test_the_end_of_a_certificate_is_seen_also_once_it_is_over(federation):
    lasting = federation.member(AccessRole.WORKER, "lasting", days=2.0)
    over = federation.member(AccessRole.WORKER, "over", begins=-7200.0, days=1 / 24)
    now = time.time()
    assert certificate_end(lasting) == pytest.approx(now + 2 * 86400, abs=120)
    assert now - 7200 < certificate_end(over) < now


def test_where_there_is_no_certificate_nothing_is_said_of_its_end(tmp_path: Path):
    assert certificate_end(None) is None
    assert certificate_end(tmp_path) is None
    (tmp_path / "tls.crt").write_text("rubbish")
    assert certificate_end(tmp_path) is None
