"""A scripted worker that does what a round's plan says, and a wire that is read.

The worker trains nothing: where a plan says "train" it adds noise. It keeps what it was sent and
what it must not send apart, so a test can say of every tensor where it may be found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load
from support.builders import METRICS
from support.federation import ScriptedWorker
from torch import Tensor

from aggregator_service.transport.federation_servicer import FederationServicer
from fedlora.adapters.names import Part, parse_key, part_key
from fedlora.adapters.spec import AdapterLayout
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.runs.plan import RoundPlan, Selection, WorkerFeature
from fedlora.runs.tasks import Capabilities, Role
from fedlora.wire.convert import from_message, to_message
from fedlora.wire.payload import reader_of, serialize
from fedlora.wire.stream import Chunk, Commit

# --- the wire ------------------------------------------------------------------------------


@dataclass
class Payload:
    """One payload that crossed the wire, whole."""

    header: Any
    tensors: dict[str, Tensor]
    held_version: int | None = None
    """of a download: what the worker said that it holds"""


@dataclass
class Recording:
    """Everything the servicer received and sent."""

    up: list[Payload] = field(default_factory=list)
    down: list[Payload] = field(default_factory=list)

    def servicer(self) -> type[FederationServicer]:
        """The real servicer, with every message of a payload noted on its way."""
        recording = self

        class Recorded(FederationServicer):
            async def PushUpdate(self, request: Any, context: Any) -> Any:
                messages: list[Any] = []

                async def noted() -> AsyncIterator[Any]:
                    async for message in request:
                        messages.append(message)
                        yield message

                response = await super().PushUpdate(noted(), context)
                recording.up.append(_payload(messages))
                return response

            async def PullAdapter(self, request: Any, context: Any) -> AsyncIterator[Any]:
                messages: list[Any] = []
                async for message in super().PullAdapter(request, context):
                    messages.append(message)
                    yield message
                payload = _payload(messages)
                if request.HasField("held_version"):
                    payload.held_version = request.held_version
                recording.down.append(payload)

        return Recorded


def _payload(messages: list[Any]) -> Payload:
    read = reader_of(pb.PullAdapterResponse)
    header, *rest = messages
    parts = [m if isinstance(m, Chunk | Commit) else read(serialize(m)) for m in rest]
    data = b"".join(part.data for part in parts if isinstance(part, Chunk))
    return Payload(header.header, load(data))


# --- the worker ----------------------------------------------------------------------------


class PlannedWorker(ScriptedWorker):
    """Follows plans. `held` is the global adapter as sent; `kept` are private tensors."""

    def __init__(
        self, stub: Any, name: str, layout: AdapterLayout, *, role: Role = Role.PARTY, seed: int = 0
    ) -> None:
        super().__init__(stub, name)
        self.layout, self.role = layout, role
        self.held: dict[str, Tensor] = {}
        self.held_version: int | None = None
        self.kept: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    async def join(self, *, max_rank: int = 0) -> None:
        capabilities = Capabilities(
            max_rank=max_rank, features=tuple(WorkerFeature), role=self.role
        )
        response = await self.stub.Register(
            pb.RegisterRequest(
                worker_name=self.name,
                instance_id=self.instance_id,
                capabilities=to_message(capabilities, pb.Capabilities),
            ),
            timeout=30,
        )
        self.token, self.run_id = response.session_token, response.run_id
        self.rank = response.rank
        await self.confirm(self.layout)

    async def bring(self, version: int) -> None:
        """Pulls what this worker lacks of a version, and lays it over what it holds."""
        if version == self.held_version:
            return
        request = pb.PullAdapterRequest(session_token=self.token, adapter_version=version)
        if self.held_version is not None:
            request.held_version = self.held_version
        messages = [m async for m in self.stub.PullAdapter(request, timeout=30)]
        payload = _payload(messages)
        if not payload.header.HasField("held_version"):
            self.held.clear()
        self.held |= payload.tensors
        self.held_version = version

    def train(self, plan: RoundPlan) -> dict[str, Tensor]:
        """What a plan makes this worker send."""
        self.given = dict(self.held)
        lower = plan.may_lower_rank and self.name.endswith("0") and self.rank > 2
        if lower:
            self.rank -= 1
        sent: dict[str, Tensor] = {}
        for module in self.layout.modules:
            sent |= self._module(module.path, plan)
        for key, tensor in self.held.items():
            if parse_key(key).part is None:
                sent[key] = self._moved(tensor)
        return sent

    def _module(self, path: str, plan: RoundPlan) -> dict[str, Tensor]:
        keys = self.keys(path)
        chosen = torch.arange(self.rank)
        sent: dict[str, Tensor] = {}
        if plan.selection is not Selection.ALL:
            mask = torch.rand(self.rank, generator=self._generator) < 0.6
            chosen = mask.nonzero().flatten()
            sent[part_key(path, Part.SELECTED)] = mask.float()
        for part in plan.trained:
            whole = self._moved(self.held[keys[part]])
            if part is Part.A:
                whole = whole[chosen] if len(chosen) < whole.shape[0] else whole[: self.rank]
            elif part is Part.B:
                whole = whole[:, chosen] if len(chosen) < whole.shape[1] else whole[:, : self.rank]
            if len(chosen) or part not in (Part.A, Part.B):
                sent[keys[part]] = whole.contiguous()
        for part in plan.private:
            mine = self.kept.get(keys[part], self.held[keys[part]])
            self.kept[keys[part]] = self._moved(mine)
        return sent

    def keys(self, path: str) -> dict[Part, str]:
        """Keys of a module's parts by part, as the server spells them."""
        parsed = {key: parse_key(key) for key in self.held}
        return {p.part: key for key, p in parsed.items() if p.path == path and p.part is not None}

    def _moved(self, tensor: Tensor) -> Tensor:
        noise = torch.randn(tensor.shape, generator=self._generator)
        return tensor + 0.3 * noise

    async def work(self) -> pb.Task:
        """Does the next task, whatever it is."""
        task = await self.task()
        if task.kind == pb.TASK_KIND_TRAIN or task.kind == pb.TASK_KIND_REFINE:
            await self.bring(task.adapter_version)
            tensors = self.train(from_message(task.plan, RoundPlan))
            examples = 10 * (1 + int(self.name[-1])) if self.name[-1].isdigit() else 10
            await self.push(task, tensors, num_examples=examples, metrics=METRICS)
        elif task.kind == pb.TASK_KIND_EVALUATE:
            await self.bring(task.adapter_version)
            await self.evaluate(task)
        return task

    async def initialize(self, task: pb.Task, manifest_of: Mapping[str, tuple[int, ...]]) -> None:
        """Sends version 0: factors at random, cores the identity."""
        tensors = {}
        for key, shape in manifest_of.items():
            value = 0.5 * torch.randn(shape, generator=self._generator)
            if parse_key(key).part is Part.CORE:
                value = torch.eye(shape[0])
            if parse_key(key).part is Part.MAGNITUDE:
                value = value.abs() + 1
            tensors[key] = value
        await self.push(task, tensors, num_examples=0)
