"""Laws of every MemberStore: who is invited, certified and revoked, and that it stays so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.memory_store import InMemoryMembers

from aggregator_service.members import Invitation, MemberStore
from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.members import Member
from fedlora.identity.names import AccessRole

WORKER, OBSERVER = AccessRole.WORKER, AccessRole.OBSERVER
OPEN = Invitation(token_digest="a" * 64, role=WORKER, name="w-1", expires_at=100.0)
REDEEMED = replace(OPEN, key_digest="k", certificate_pem="pem")


@pytest.fixture(params=["memory", "sqlite"])
def opened(request, tmp_path: Path):
    """Opens the store, and closes what is open at the end."""
    stores: list[SqliteStateStore] = []
    memory = InMemoryMembers()

    def open_again() -> MemberStore:
        if request.param == "memory":
            return memory
        if stores:
            stores.pop().close()
        stores.append(SqliteStateStore(tmp_path / "state.sqlite"))
        return stores[-1].members

    yield open_again
    for store in stores:
        store.close()


Opened = Callable[[], MemberStore]


def test_an_invitation_is_found_by_its_digest_alone(opened: Opened):
    opened().invite(OPEN)
    store = opened()
    assert store.invitation(OPEN.token_digest) == OPEN
    assert store.invitation("b" * 64) is None
    assert store.members() == ()


def test_an_invitation_is_redeemed_once(opened: Opened):
    store = opened()
    store.invite(OPEN)
    assert store.redeem(REDEEMED, certified_until=500.0)
    assert not store.redeem(replace(REDEEMED, key_digest="other"), certified_until=900.0)
    store = opened()
    assert store.invitation(OPEN.token_digest) == REDEEMED
    assert store.members() == (
        Member(role=WORKER, name="w-1", certified_until=500.0, revoked_at=None),
    )


def test_a_revocation_stays_and_drops_what_is_open_of_that_member_alone(opened: Opened):
    store = opened()
    other = replace(OPEN, token_digest="b" * 64, name="w-2")
    same_name = replace(OPEN, token_digest="c" * 64, role=OBSERVER)
    for invitation in (OPEN, other, same_name):
        store.invite(invitation)
    store.revoke(WORKER, "w-1", at=50.0)
    store = opened()
    assert store.invitation(OPEN.token_digest) is None
    assert store.invitation(other.token_digest) == other
    assert store.invitation(same_name.token_digest) == same_name
    store.certify(WORKER, "w-1", until=700.0)
    assert opened().members() == (
        Member(role=WORKER, name="w-1", certified_until=700.0, revoked_at=50.0),
    )


def test_a_later_revocation_and_a_later_certificate_count(opened: Opened):
    store = opened()
    for at in (50.0, 60.0):
        store.revoke(WORKER, "w-1", at=at)
        store.certify(OBSERVER, "o", until=10 * at)
    assert opened().members() == (
        Member(role=OBSERVER, name="o", certified_until=600.0, revoked_at=None),
        Member(role=WORKER, name="w-1", certified_until=None, revoked_at=60.0),
    )


def test_a_server_that_was_replaced_makes_nobody_a_member(tmp_path: Path):
    old = SqliteStateStore(tmp_path / "state.sqlite")
    new = SqliteStateStore(tmp_path / "state.sqlite")
    try:
        for write in (
            lambda: old.members.invite(OPEN),
            lambda: old.members.certify(WORKER, "w-1", until=1.0),
            lambda: old.members.revoke(WORKER, "w-1", at=1.0),
        ):
            with pytest.raises(FedLoraError) as caught:
                write()
            assert caught.value.reason is Reason.STATE_LOCKED
        assert new.members.members() == ()
    finally:
        old.close()
        new.close()
