"""The state of all runs in dictionaries: what a store has to do, said as plainly as it can be.

The SQLite store passes the same tests and is compared with this one step by step.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace

from aggregator_service.members import Invitation
from aggregator_service.rounds.ports import Transaction
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.members import Member
from fedlora.identity.names import AccessRole
from fedlora.runs.report import Certificate, RoundReport, RunEvent


@dataclass(frozen=True, slots=True)
class _Tables:
    """Everything stored; each key begins with the run's id."""

    runs: dict[str, tuple[RunState, float]] = field(default_factory=dict)
    events: dict[tuple[str, int], RunEvent] = field(default_factory=dict)
    """by sequence number"""
    updates: dict[tuple[str, int, str], UpdateRecord] = field(default_factory=dict)
    """by round and worker"""
    adapters: dict[tuple[str, int], AdapterRecord] = field(default_factory=dict)
    """by version"""
    reports: dict[tuple[str, int], RoundReport] = field(default_factory=dict)
    """by round"""
    certificates: dict[tuple[str, int], Certificate] = field(default_factory=dict)
    """by round"""
    dropped: set[tuple[str, int, str]] = field(default_factory=set)
    """updates, by round and worker"""

    def copy(self) -> _Tables:
        """The same contents in dictionaries of their own."""
        return _Tables(*(getattr(self, f.name).copy() for f in fields(self)))


class InMemoryMembers:
    """A MemberStore (see `aggregator_service.members`) that ends with its process."""

    def __init__(self) -> None:
        self._invitations: dict[str, Invitation] = {}
        self._members: dict[tuple[AccessRole, str], Member] = {}

    def invite(self, invitation: Invitation) -> None:
        """See MemberStore."""
        self._invitations[invitation.token_digest] = invitation

    def invitation(self, token_digest: str) -> Invitation | None:
        """See MemberStore."""
        return self._invitations.get(token_digest)

    def redeem(self, invitation: Invitation, *, certified_until: float) -> bool:
        """See MemberStore."""
        if self._invitations[invitation.token_digest].key_digest:
            return False
        self._invitations[invitation.token_digest] = invitation
        self.certify(invitation.role, invitation.name, until=certified_until)
        return True

    def certify(self, role: AccessRole, name: str, *, until: float) -> None:
        """See MemberStore."""
        self._members[role, name] = replace(self._member(role, name), certified_until=until)

    def revoke(self, role: AccessRole, name: str, *, at: float) -> None:
        """See MemberStore."""
        self._members[role, name] = replace(self._member(role, name), revoked_at=at)
        self._invitations = {
            digest: i
            for digest, i in self._invitations.items()
            if i.key_digest or (i.role, i.name) != (role, name)
        }

    def members(self) -> tuple[Member, ...]:
        """See MemberStore."""
        return tuple(self._members[key] for key in sorted(self._members))

    def _member(self, role: AccessRole, name: str) -> Member:
        unknown = Member(role=role, name=name, certified_until=None, revoked_at=None)
        return self._members.get((role, name), unknown)


class InMemoryStateStore:
    """A StateStore (see `rounds.ports`) that ends with its process."""

    def __init__(self) -> None:
        self._tables = _Tables()
        self.members = InMemoryMembers()

    def load_runs(self) -> tuple[tuple[RunState, float], ...]:
        """See StateStore."""
        rows = self._tables.runs.values()
        return tuple(sorted(rows, key=lambda row: (row[0].created_at, row[0].run_id)))

    def commit(self, transaction: Transaction) -> None:
        """See StateStore."""
        # All or nothing: the copy takes the tables' place once everything has gone in.
        tables, state = self._tables.copy(), transaction.state
        run_id, name = state.run_id, state.spec.name
        others = (other.spec.name for other, _ in tables.runs.values() if other.run_id != run_id)
        _require_new(name in others, f"run {name!r}")
        tables.runs[run_id] = (state, transaction.clock)
        for event in transaction.events:
            _require_new((run_id, event.sequence) in tables.events, f"event {event.sequence}")
            tables.events[run_id, event.sequence] = event
        for update in transaction.updates:
            _require_new(_is_known(tables, run_id, update), f"update {update.update_id!r}")
            tables.updates[run_id, update.round, update.worker] = update
        for adapter in transaction.adapters:
            key = (run_id, adapter.version)
            _require_new(key in tables.adapters, f"version {adapter.version}")
            tables.adapters[key] = adapter
        for report in transaction.reports:
            tables.reports[run_id, report.round] = report
        for round, certificate in transaction.certificates:
            tables.certificates[run_id, round] = certificate
        self._tables = tables

    def events(
        self, run_id: str, *, first_sequence: int = 1, limit: int = 1000
    ) -> tuple[RunEvent, ...]:
        """See StateStore."""
        rows = sorted(self._tables.events.items(), key=lambda row: row[0])
        chosen = [e for (run, s), e in rows if run == run_id and s >= first_sequence]
        return tuple(chosen[:limit])

    def updates(self, run_id: str, round: int) -> tuple[UpdateRecord, ...]:
        """See StateStore."""
        rows = sorted(self._tables.updates.items(), key=lambda row: row[0])
        return tuple(u for (run, number, _), u in rows if (run, number) == (run_id, round))

    def update_by_key(self, run_id: str, idempotency_key: str) -> UpdateRecord | None:
        """See StateStore."""
        for (run, _, _), update in self._tables.updates.items():
            if run == run_id and update.idempotency_key == idempotency_key:
                return update
        return None

    def adapter(self, run_id: str, version: int) -> AdapterRecord | None:
        """See StateStore."""
        return self._tables.adapters.get((run_id, version))

    def adapters(self, run_id: str) -> tuple[AdapterRecord, ...]:
        """See StateStore."""
        stored = self._tables.adapters
        return tuple(stored[key] for key in sorted(stored) if key[0] == run_id)

    def reports(
        self, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> tuple[RoundReport, ...]:
        """See StateStore."""
        stored, certificates = self._tables.reports, self._tables.certificates
        keys = sorted(key for key in stored if key[0] == run_id and key[1] > after)
        return tuple(
            replace(stored[key], certificate=certificates.get(key)) for key in keys[:limit]
        )

    def report(self, run_id: str, round: int) -> RoundReport | None:
        """See StateStore."""
        return next((r for r in self.reports(run_id) if r.round == round), None)

    def uncertified_rounds(self, run_id: str) -> tuple[int, ...]:
        """See StateStore."""
        aggregated = {a.round for a in self.adapters(run_id) if a.round and not a.is_refinement}
        certified = {round for run, round in self._tables.certificates if run == run_id}
        return tuple(sorted(aggregated - certified))

    def kept_rounds(self, run_id: str) -> tuple[int, ...]:
        """See StateStore."""
        kept = self._tables.updates.keys() - self._tables.dropped
        return tuple(sorted({round for run, round, _ in kept if run == run_id}))

    def drop_updates(self, run_id: str, rounds: Collection[int]) -> None:
        """See StateStore."""
        keys = self._tables.updates.keys()
        self._tables.dropped.update(k for k in keys if k[0] == run_id and k[1] in rounds)

    def named_blobs(self) -> frozenset[str]:
        """See StateStore."""
        named: set[str] = set()
        for run_id, (state, _) in self._tables.runs.items():
            kept, adapters = self.kept_rounds(run_id), self.adapters(run_id)
            updates = [u for round in kept for u in self.updates(run_id, round)]
            updates += [*state.updates.values(), *state.carried.values()]
            updates += [state.refinement] if state.refinement else []
            before = max((a.round for a in adapters if kept and a.round < kept[0]), default=0)
            remembering = [a for a in adapters if kept and a.round >= before]
            remembering += [state.adapter] if state.adapter else []
            named |= {u.digest for u in updates} | {a.digest for a in (*adapters, *remembering)}
            named |= {a.state_digest for a in remembering if a.state_digest}
        return frozenset(named)

    def close(self) -> None:
        """See StateStore."""


def _is_known(tables: _Tables, run_id: str, update: UpdateRecord) -> bool:
    return (
        (run_id, update.round, update.worker) in tables.updates
        or any(u.update_id == update.update_id for u in tables.updates.values())
        or any(
            run == run_id and u.idempotency_key == update.idempotency_key
            for (run, _, _), u in tables.updates.items()
        )
    )


def _require_new(known: bool, what: str) -> None:
    if known:
        raise FedLoraError(Reason.ALREADY_EXISTS, f"already stored: {what}")
