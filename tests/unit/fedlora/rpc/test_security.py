"""No secret and no adapter leaves this machine in plain text by accident."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.identities import Federation

from fedlora.errors import FedLoraError, Reason
from fedlora.identity.names import AccessRole
from fedlora.rpc.security import ClientSecurity, is_loopback


@pytest.mark.parametrize(
    ("address", "ours"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/run/a", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("127.0.0.1.example:1", False),
    ],
)
def test_what_is_this_machines_own_business(address: str, ours: bool):
    assert is_loopback(address) is ours


def test_plain_text_goes_to_another_machine_only_when_asked_for():
    ClientSecurity().dial("127.0.0.1:1").close()
    ClientSecurity(insecure=True).dial("a.example:1").close()
    with pytest.raises(FedLoraError, match=r"a\.example:1 is another machine") as caught:
        ClientSecurity().dial("a.example:1")
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_plain_text_to_another_machine_is_known_as_such(tmp_path: Path):
    asked = ClientSecurity(insecure=True)
    assert asked.is_plain_beyond("a.example:1")
    assert not asked.is_plain_beyond("127.0.0.1:1")
    for security in (ClientSecurity(), ClientSecurity(insecure=True, identity_dir=tmp_path)):
        assert not security.is_plain_beyond("a.example:1")


def test_a_token_never_goes_to_another_machine_in_plain_text(tmp_path: Path):
    (tmp_path / "token").write_text("secret\n")
    folder = Federation(tmp_path).member(AccessRole.WORKER, "w-1")
    for kept in ("tls.crt", "tls.key"):
        (folder / kept).unlink()
    ClientSecurity(token_file=tmp_path / "token").dial("127.0.0.1:1").close()
    ClientSecurity(token_file=tmp_path / "token", identity_dir=folder).dial("a.example:1").close()
    for insecure in (False, True):
        with pytest.raises(FedLoraError, match="is not sent to another machine"):
            ClientSecurity(token_file=tmp_path / "token", insecure=insecure).dial("a.example:1")


@pytest.mark.parametrize("text", ["", "two words", "\u00e4"])
def test_a_token_file_holds_one_token(tmp_path: Path, text: str):
    (tmp_path / "token").write_text(text)
    with pytest.raises(FedLoraError, match="must hold one token"):
        ClientSecurity(token_file=tmp_path / "token").dial("127.0.0.1:1")


def test_what_is_shown_has_a_stamp_that_changes_with_it(tmp_path: Path):
    federation = Federation(tmp_path)
    folder = federation.member(AccessRole.WORKER, "w-1")
    security = ClientSecurity(identity_dir=folder)
    before = security.stamp()
    assert security.stamp() == before
    federation.member(AccessRole.WORKER, "w-1")
    assert security.stamp() != before
