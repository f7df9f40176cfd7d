"""Typed calls of AdminService for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import grpc

from fedlora.errors import FedLoraError
from fedlora.identity.members import Invite, Invited, Member, Revocation
from fedlora.identity.names import AccessRole
from fedlora.proto.v1 import admin_pb2 as pb
from fedlora.proto.v1 import admin_pb2_grpc, run_pb2
from fedlora.rpc.payload_methods import export_adapter
from fedlora.rpc.security import PLAIN_TEXT, ClientSecurity
from fedlora.rpc.status import from_rpc_error
from fedlora.runs.report import RoundReport, Run, RunEvent
from fedlora.runs.spec import RunSpec
from fedlora.wire.convert import from_message, to_message
from fedlora_cli.server_error import ServerError

__all__ = ["AdminClient"]

# Answers are small and read from memory; a server that takes longer is not well.
_UNARY_DEADLINE_SECONDS = 20.0

_LIST_DEADLINE_SECONDS = 120.0
"""a run may have ten thousand rounds"""

_EXPORT_DEADLINE_SECONDS = 24 * 3600.0
"""on any line; a command that is stopped in its tracks holds no place at the server for longer"""

T = TypeVar("T")


class AdminClient:
    """A connection to an aggregator; use it as a context manager.

    Every method raises ServerError with the server's reason, or UNAVAILABLE and
    DEADLINE_EXCEEDED where there is no answer.

    Args:
        address: host:port of the aggregator.
        security: what the caller has to show.
    """

    def __init__(self, address: str, security: ClientSecurity = PLAIN_TEXT) -> None:
        self.address = address
        self._channel = security.dial(address)
        self._stub = admin_pb2_grpc.AdminServiceStub(self._channel)

    def __enter__(self) -> Self:
        """Nothing is sent before the first call."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes the connection; streams in progress end."""
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def create_run(self, spec: RunSpec, *, start: bool) -> Run:
        """Creates a run, or returns the one of that name and spec."""
        message = to_message(spec, run_pb2.RunSpec)
        request = pb.CreateRunRequest(spec=message, start=start)
        return self._run(lambda: self._stub.CreateRun(request, timeout=_UNARY_DEADLINE_SECONDS))

    def stop_run(self, run: str, reason: str) -> Run:
        """Ends a run."""
        request = pb.StopRunRequest(run=run, reason=reason)
        return self._run(lambda: self._stub.StopRun(request, timeout=_UNARY_DEADLINE_SECONDS))

    def get_run(self, run: str) -> Run:
        """A run by id or name."""
        request = pb.GetRunRequest(run=run)
        return self._run(lambda: self._stub.GetRun(request, timeout=_UNARY_DEADLINE_SECONDS))

    def list_runs(self) -> tuple[Run, ...]:
        """All runs, oldest first, without their layouts."""
        response = self._call(
            lambda: self._stub.ListRuns(pb.ListRunsRequest(), timeout=_UNARY_DEADLINE_SECONDS)
        )
        return tuple(from_message(r, Run) for r in response.runs)

    def list_rounds(self, run: str) -> tuple[RoundReport, ...]:
        """Completed rounds, their certificates without modules."""
        request = pb.ListRoundsRequest(run=run)
        try:
            responses = self._stub.ListRounds(request, timeout=_LIST_DEADLINE_SECONDS)
            return tuple(from_message(response.round, RoundReport) for response in responses)
        except grpc.RpcError as error:
            raise self._error(error) from None

    def round_report(self, run: str, round: int = 0) -> RoundReport:
        """One round with everything known about it; 0 is the last one."""
        request = pb.GetRoundReportRequest(run=run, round=round)
        response = self._call(
            lambda: self._stub.GetRoundReport(request, timeout=_UNARY_DEADLINE_SECONDS)
        )
        return from_message(response.report, RoundReport)

    def watch_run(
        self, run: str, *, first_sequence: int = 1, follow: bool = True
    ) -> Iterator[RunEvent]:
        """A run's events as they come.

        Args:
            run: id or name.
            first_sequence: first stored event wanted.
            follow: go on with new events until the run has ended.
        """
        request = pb.WatchRunRequest(run=run, first_sequence=first_sequence, follow=follow)
        # No deadline: a round may take hours. Keepalive notices a server that vanished.
        stream = self._stub.WatchRun(request)
        try:
            for response in stream:
                yield from_message(response.event, RunEvent)
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            stream.cancel()

    def export_adapter(self, run: str, version: int | None) -> Iterator[object]:
        """One version of the adapter as the server streams it; None is the newest."""
        request = pb.ExportAdapterRequest(run=run)
        if version is not None:
            request.adapter_version = version
        stream = export_adapter(self._channel)(request, timeout=_EXPORT_DEADLINE_SECONDS)
        try:
            yield from stream
        except grpc.RpcError as error:
            raise self._error(error) from None
        finally:
            stream.cancel()

    def invite(self, role: AccessRole, name: str, *, seconds: float) -> Invited:
        """A join token for a member."""
        wish = to_message(Invite(role=role, name=name, seconds=seconds), pb.InviteRequest)
        response = self._call(lambda: self._stub.Invite(wish, timeout=_UNARY_DEADLINE_SECONDS))
        return from_message(response, Invited)

    def revoke(self, role: AccessRole, name: str) -> None:
        """Refuses what was issued to a member until now."""
        wish = to_message(Revocation(role=role, name=name), pb.RevokeRequest)
        self._call(lambda: self._stub.Revoke(wish, timeout=_UNARY_DEADLINE_SECONDS))

    def members(self) -> tuple[Member, ...]:
        """All whom the server has certified or revoked."""
        response = self._call(
            lambda: self._stub.ListMembers(pb.ListMembersRequest(), timeout=_UNARY_DEADLINE_SECONDS)
        )
        return tuple(from_message(m, Member) for m in response.members)

    def _run(self, call: Callable[[], object]) -> Run:
        response = self._call(call)
        return from_message(response.run, Run)  # type: ignore[attr-defined]

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: grpc.RpcError) -> FedLoraError:
        return ServerError.of(from_rpc_error(error, peer=self.address))
