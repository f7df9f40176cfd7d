"""A stream of beats that a test moves by hand."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from support.federation import ScriptedWorker, reason_of

from fedlora.proto.v1 import federation_pb2 as pb

__all__ = ["Beats"]


class Beats:
    """KeepAlive of a worker, with the session that it has now."""

    def __init__(self, worker: ScriptedWorker) -> None:
        self.token = worker.token
        self.stream: Any = worker.stub.KeepAlive()

    async def beat(self, task_id: str = "") -> int:
        """The directive that answers."""
        beat = pb.HeartbeatRequest(session_token=self.token, task_id=task_id)
        await self.stream.write(beat)
        answer = await self.stream.read()
        if answer is grpc.aio.EOF:
            raise AssertionError(f"no answer: {await self.stream.code()}")
        return answer.directive

    async def beat_unanswered(self) -> None:
        """A beat that asks for no answer."""
        await self.stream.write(pb.HeartbeatRequest(session_token=self.token, unanswered=True))

    async def refused(self) -> str:
        """Why the stream ends at a beat."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.beat()
        return reason_of(caught.value)

    async def ended(self) -> str:
        """Why the stream ends by itself."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.stream.read()
        return reason_of(caught.value)
