"""A federation of two real workers, looked at in every way there is while it trains its last round.

What must never be seen has a mark of its own: texts of examples, values of tensors, tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import torch
from support.federation import Served, serving
from support.identities import Federation
from support.logs import logged
from support.observed_crew import NUM_ROUNDS, OPERATOR, WORKERS, Crew, Members
from support.worker_runs import classifier_spec, worker_run

from fedlora.exit_codes import ExitCode
from fedlora.identity.folder import read_identity
from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc, federation_pb2_grpc
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.rpc.security import ClientSecurity
from fedlora.runs.rounds import RoundRules

__all__ = ["Observed", "observe", "scrape"]


@dataclass
class Observed:
    """All that can be seen of the federation from outside."""

    server: str = ""
    """its metrics, in the last round"""
    ended: str = ""
    """its metrics, once the run was over"""
    workers: dict[str, str] = field(default_factory=dict)
    """theirs, in the last round"""
    log: str = ""
    """the log of all of them, in JSON"""
    events: str = ""
    """what a watcher was sent"""
    folder: Path = Path()
    """the run's directory"""
    tokens: list[str] = field(default_factory=list)
    """of sessions, and bearer tokens"""
    expires: float = 0.0
    """when the server's certificate ends"""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log, line by line."""
        return [json.loads(line) for line in self.log.splitlines()]


def scrape(address: str) -> str:
    """The metrics of a process."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as page:
        return page.read().decode()


def observe(tmp_path: Path, model: Path) -> Observed:
    """Runs the federation to its end."""
    with logged() as log, torch.random.fork_rng(devices=[]):
        seen = asyncio.run(_observe(tmp_path, model, log))
    seen.log = log.getvalue()
    return seen


async def _observe(tmp_path: Path, model: Path, log: io.StringIO) -> Observed:
    rules = RoundRules(num_rounds=NUM_ROUNDS, min_workers=2, quorum=2, deadline_seconds=120.0)
    spec = replace(worker_run(classifier_spec(model)), rounds=rules)
    federation = Federation(tmp_path / "federation")
    identity = federation.server()
    members = Members(tmp_path, federation.authority_dir)
    crew = Crew(tmp_path, members)
    seen = Observed(
        folder=tmp_path / "runs" / spec.name,
        tokens=list(members.tokens),
        expires=read_identity(identity, now=time.time()).certified.not_after,
    )
    async with (
        asyncio.timeout(150),
        serving(
            tmp_path,
            spec,
            metrics_address="127.0.0.1:0",
            export_dir=tmp_path / "runs",
            tensorboard=True,
            identity_dir=identity,
            tokens_file=members.tokens_file,
        ) as served,
    ):
        _note_tokens(served, seen)
        running = [
            asyncio.create_task(asyncio.to_thread(crew.work, served.address, name))
            for name in WORKERS
        ]
        await asyncio.to_thread(crew.wait_for_last_round)
        actor = served.aggregator.coordinator.run(spec.name)
        while actor._certifying:
            await actor.wait_for_change(None)
        session = seen.tokens[-1]
        await asyncio.to_thread(_be_refused, members.of(WORKERS[0]), served.address, session)
        seen.server = await asyncio.to_thread(scrape, served.aggregator.metrics_address)
        for name, address in _worker_addresses(log).items():
            seen.workers[name] = await asyncio.to_thread(scrape, address)
        crew.go_on()
        assert await asyncio.gather(*running) == [ExitCode.OK, ExitCode.OK]
        await served.aggregator.wait_until_settled()
        seen.ended = await asyncio.to_thread(scrape, served.aggregator.metrics_address)
        operator = members.of(OPERATOR)
        seen.events = await asyncio.to_thread(_watched, operator, served.address, spec.name)
    return seen


def _note_tokens(served: Served, seen: Observed) -> None:
    register = served.aggregator.workers.register

    async def noted(**call: Any) -> Any:
        registration = await register(**call)
        # The first worker's session comes last: its own call is what will be refused.
        at = len(seen.tokens) if call["name"] == WORKERS[0] else 0
        seen.tokens.insert(at, registration.session_token)
        return registration

    served.aggregator.workers.register = noted  # type: ignore[method-assign]


def _be_refused(security: ClientSecurity, address: str, session: str) -> None:
    """A worker's call that the server has to refuse, with its own session."""
    with security.dial(address) as channel:
        stub = federation_pb2_grpc.FederationServiceStub(channel)
        request = pb.PullAdapterRequest(session_token=session, adapter_version=99)
        with contextlib.suppress(grpc.RpcError):
            list(stub.PullAdapter(request, timeout=30))


def _watched(security: ClientSecurity, address: str, run: str) -> str:
    """The stored events of a run, as they are sent to a watcher."""
    with security.dial(address) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        return str(list(stub.WatchRun(admin_pb2.WatchRunRequest(run=run), timeout=30)))


def _worker_addresses(log: io.StringIO) -> dict[str, str]:
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    return {
        line["worker"]: line["address"]
        for line in lines
        if line["event"] == "metrics_served" and "worker" in line
    }
