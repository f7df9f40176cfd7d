"""What the rounds need from outside: a store that survives the process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from aggregator_service.members import MemberStore
from aggregator_service.rounds.state import AdapterRecord, RunState, UpdateRecord
from fedlora.runs.report import Certificate, RoundReport, RunEvent

__all__ = ["StateStore", "Transaction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What one step of a run makes durable, all of it or nothing."""

    state: RunState
    """replaces the stored state of its run_id; a new run_id creates the run"""
    clock: float
    """the run's clock at this moment"""
    events: tuple[RunEvent, ...] = ()
    """appended; sequence numbers follow the stored ones without a gap"""
    updates: tuple[UpdateRecord, ...] = ()
    adapters: tuple[AdapterRecord, ...] = ()
    reports: tuple[RoundReport, ...] = ()
    """without certificate"""
    certificates: tuple[tuple[int, Certificate], ...] = ()
    """by round; one that is there already is replaced"""


class StateStore(Protocol):
    """Durable state of all runs. One caller at a time; every method blocks.

    When `commit` returns, the transaction survives SIGKILL and loss of power. Each raises
    FedLoraError OUT_OF_SPACE where there is no room, and then nothing has changed.
    """

    @property
    def members(self) -> MemberStore:
        """Who has been invited, certified and revoked; of no run."""
        ...

    def load_runs(self) -> tuple[tuple[RunState, float], ...]:
        """All runs with their clocks, oldest first."""
        ...

    def commit(self, transaction: Transaction) -> None:
        """Makes a transaction durable.

        Raises:
            FedLoraError: ALREADY_EXISTS for a second run of one name, a second update of one
                worker in one round or under one idempotency key, a second adapter of one version.
        """
        ...

    def events(
        self, run_id: str, *, first_sequence: int = 1, limit: int = 1000
    ) -> tuple[RunEvent, ...]:
        """Stored events in order, from first_sequence on; empty past the last."""
        ...

    def updates(self, run_id: str, round: int) -> tuple[UpdateRecord, ...]:
        """Committed updates of a round, sorted by worker; round 0 is the initial adapter."""
        ...

    def update_by_key(self, run_id: str, idempotency_key: str) -> UpdateRecord | None:
        """The update committed under a key, of whatever round; None if there is none."""
        ...

    def adapter(self, run_id: str, version: int) -> AdapterRecord | None:
        """A published version; None if there is none."""
        ...

    def adapters(self, run_id: str) -> tuple[AdapterRecord, ...]:
        """All published versions, oldest first."""
        ...

    def reports(
        self, run_id: str, *, after: int = 0, limit: int | None = None
    ) -> tuple[RoundReport, ...]:
        """Completed rounds in order, each with its certificate once there is one.

        Args:
            run_id: of the run.
            after: only later rounds than this one.
            limit: at most so many; None for all.
        """
        ...

    def report(self, run_id: str, round: int) -> RoundReport | None:
        """A completed round, with its certificate once there is one; None before that."""
        ...

    def uncertified_rounds(self, run_id: str) -> tuple[int, ...]:
        """Rounds, in order, that have published what they aggregated and have no certificate."""
        ...

    def kept_rounds(self, run_id: str) -> tuple[int, ...]:
        """Rounds, in order, whose updates are not dropped; round 0 is the initial adapter's."""
        ...

    def drop_updates(self, run_id: str, rounds: Collection[int]) -> None:
        """Writes down, durably, that the files of these rounds' updates are needed no more.

        What the updates were, and their digests, stays.
        """
        ...

    def named_blobs(self) -> Collection[str]:
        """Digests of all files that must be there.

        Raises:
            FedLoraError: STATE_LOCKED if a newer server owns the state.
        """
        ...

    def close(self) -> None:
        """Releases the store; nothing is lost if this is never called."""
        ...
