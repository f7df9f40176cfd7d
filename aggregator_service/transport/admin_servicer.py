"""AdminService: what operators and the command line call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from aggregator_service.coordinator import Coordinator
from aggregator_service.enrolment import Enrolment
from aggregator_service.rounds.summary import describe
from aggregator_service.transport.encoded_files import EncodedFiles
from aggregator_service.transport.errors import Context, answering, streaming
from fedlora.adapters.peft_files import adapter_config_json
from fedlora.identity.members import Invite, Revocation
from fedlora.proto.v1 import admin_pb2 as pb
from fedlora.proto.v1 import admin_pb2_grpc, run_pb2
from fedlora.runs.report import RunEvent
from fedlora.runs.spec import RunSpec
from fedlora.wire.convert import from_message, to_message
from fedlora.wire.payload import encode_commit

__all__ = ["AdminServicer"]


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Decodes, calls the coordinator, encodes."""

    def __init__(self, coordinator: Coordinator, enrolment: Enrolment, files: EncodedFiles) -> None:
        self._coordinator = coordinator
        self._enrolment = enrolment
        self._files = files

    @answering
    async def CreateRun(
        self, request: pb.CreateRunRequest, context: Context
    ) -> pb.CreateRunResponse:
        spec = from_message(request.spec, RunSpec)
        run = await self._coordinator.create_run(spec, start=request.start)
        return pb.CreateRunResponse(run=to_message(run, pb.Run))

    @answering
    async def StartRun(self, request: pb.StartRunRequest, context: Context) -> pb.StartRunResponse:
        run = await self._coordinator.start_run(request.run)
        return pb.StartRunResponse(run=to_message(run, pb.Run))

    @answering
    async def StopRun(self, request: pb.StopRunRequest, context: Context) -> pb.StopRunResponse:
        run = await self._coordinator.stop_run(request.run, request.reason)
        return pb.StopRunResponse(run=to_message(run, pb.Run))

    @answering
    async def ListRuns(self, request: pb.ListRunsRequest, context: Context) -> pb.ListRunsResponse:
        response = pb.ListRunsResponse()
        for actor in self._coordinator.runs():
            # A layout can be long; GetRun has it.
            summary = replace(describe(actor.state), layout=None)
            response.runs.append(to_message(summary, pb.Run))
        return response

    @answering
    async def GetRun(self, request: pb.GetRunRequest, context: Context) -> pb.GetRunResponse:
        run = describe(self._coordinator.run(request.run).state)
        return pb.GetRunResponse(run=to_message(run, pb.Run))

    @streaming
    async def ListRounds(
        self, request: pb.ListRoundsRequest, context: Context
    ) -> AsyncIterator[pb.ListRoundsResponse]:
        async for report in self._coordinator.reports(self._coordinator.run(request.run)):
            message = to_message(report, run_pb2.RoundReport)
            del message.certificate.modules[:]
            if report.certificate is None:
                message.ClearField("certificate")
            yield pb.ListRoundsResponse(round=message)

    @answering
    async def GetRoundReport(
        self, request: pb.GetRoundReportRequest, context: Context
    ) -> pb.GetRoundReportResponse:
        actor = self._coordinator.run(request.run)
        report = await self._coordinator.report(actor, request.round)
        return pb.GetRoundReportResponse(report=to_message(report, run_pb2.RoundReport))

    @streaming
    async def WatchRun(
        self, request: pb.WatchRunRequest, context: Context
    ) -> AsyncIterator[pb.WatchRunResponse]:
        actor = self._coordinator.run(request.run)
        sequence = max(1, request.first_sequence)
        async with actor.progress.subscribe() as progress:
            while True:
                change = actor.next_change
                self._coordinator.check_serving()
                settled = actor.is_settled
                while events := await self._coordinator.events(actor, sequence):
                    for event in events:
                        yield _event(event)
                    sequence = events[-1].sequence + 1
                if settled or not request.follow:
                    return
                for event in await _next_progress(change, progress):
                    yield _event(event)

    @streaming
    async def ExportAdapter(
        self, request: pb.ExportAdapterRequest, context: Context
    ) -> AsyncIterator[Any]:
        actor = self._coordinator.run(request.run)
        version = request.adapter_version if request.HasField("adapter_version") else None
        record = await self._coordinator.adapter(actor, version)
        async with self._coordinator.servable(actor, record) as (path, rank):
            digest, total_bytes = bytes.fromhex(path.name), path.stat().st_size
            first = pb.ExportAdapterResponse()
            first.header.adapter_version = record.version
            first.header.round = record.round
            first.header.total_bytes = total_bytes
            first.header.digest = digest
            first.header.adapter_config_json = adapter_config_json(actor.state.spec.adapter, rank)
            yield first
            async for message in self._files.messages(
                path, start_offset=0, total_bytes=total_bytes
            ):
                yield message
            yield encode_commit(total_bytes, digest)

    @answering
    async def Invite(self, request: pb.InviteRequest, context: Context) -> pb.InviteResponse:
        invited = await self._enrolment.invite(from_message(request, Invite))
        return to_message(invited, pb.InviteResponse)

    @answering
    async def ListMembers(
        self, request: pb.ListMembersRequest, context: Context
    ) -> pb.ListMembersResponse:
        members = await self._enrolment.members()
        return pb.ListMembersResponse(members=[to_message(m, pb.Member) for m in members])

    @answering
    async def Revoke(self, request: pb.RevokeRequest, context: Context) -> pb.RevokeResponse:
        await self._enrolment.revoke(from_message(request, Revocation))
        return pb.RevokeResponse()


def _event(event: RunEvent) -> pb.WatchRunResponse:
    return pb.WatchRunResponse(event=to_message(event, pb.RunEvent))


async def _next_progress(change: asyncio.Event, queue: asyncio.Queue[RunEvent]) -> list[RunEvent]:
    """Waits for progress or for a change of the run; returns the progress there is."""
    progress = asyncio.ensure_future(queue.get())
    changed = asyncio.ensure_future(change.wait())
    await asyncio.wait({progress, changed}, return_when=asyncio.FIRST_COMPLETED)
    changed.cancel()
    events = [progress.result()] if progress.done() else []
    progress.cancel()
    while not queue.empty():
        events.append(queue.get_nowait())
    return events
