"""Composition root of the aggregator: the only place that knows the concrete classes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import structlog

from aggregator_service.admission import Admission
from aggregator_service.aggregation.base_weights import BaseWeights
from aggregator_service.allocator import share_one_arena
from aggregator_service.bounds import admission_rules, pace_rules
from aggregator_service.config import AggregatorConfig
from aggregator_service.coordinator import Coordinator
from aggregator_service.disk_watch import DiskWatch
from aggregator_service.engine import AggregationEngine
from aggregator_service.enrolment import Enrolment
from aggregator_service.exporter import RunExporter
from aggregator_service.observers import Observers
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.lock import StateLock
from aggregator_service.store.sqlite import DATABASE_NAME, SqliteStateStore
from aggregator_service.store.threaded import ThreadedStore
from aggregator_service.sweeper import Sweeper
from aggregator_service.telemetry import Silent
from aggregator_service.transport.access_table import ROLES
from aggregator_service.transport.server import GrpcServer
from aggregator_service.uploads import Uploads
from aggregator_service.worker_calls import WorkerCalls
from fedlora.exit_codes import ExitCode
from fedlora.identity.folder import certificate_end, read_authority
from fedlora.rpc.channel import MAX_CHUNK_BYTES
from fedlora.runs.phase import RunPhase
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Limits
from fedlora.telemetry.torch_device import torch_readings

if TYPE_CHECKING:
    from aggregator_service.metrics import ServerMetrics

__all__ = ["Aggregator", "serve"]

log = structlog.get_logger(__name__)

_OWNERSHIP_CHECK_SECONDS = 1.0
"""how often a server looks whether the state directory is still its own"""


class Aggregator:
    """One aggregator in this process: `async with Aggregator(config) as aggregator`.

    On entry it owns its state directory and serves; on exit it drains and lets go.

    Args:
        config: its settings.
        run: run to create and start if it is not there; None serves what is stored.
        listens: serve over gRPC; otherwise coordinator, workers and uploads are for this process
            alone.
    """

    def __init__(
        self, config: AggregatorConfig, run: RunSpec | None = None, *, listens: bool = True
    ) -> None:
        self._config = config
        self._run = run
        self._listens = listens
        self.address = ""
        """host:port it serves on, once entered, as the next three"""
        self.enrolment_address = ""
        self.health_address = ""
        self.metrics_address = ""
        self._fenced = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Opens the state, serves, and starts the run given."""
        config, loop = self._config, asyncio.get_running_loop()
        config.state_dir.mkdir(parents=True, exist_ok=True)
        async with contextlib.AsyncExitStack() as opened:
            self._lock = StateLock(config.state_dir, take_over=config.take_over)
            opened.callback(self._lock.release)
            opened.callback(self._remove_port_file)
            disk = DiskWatch(lambda: blobs.probe())
            # The epoch first: from then on nothing that another server does can be acknowledged.
            store = ThreadedStore(
                lambda: SqliteStateStore(config.state_dir / DATABASE_NAME),
                on_fenced=functools.partial(loop.call_soon_threadsafe, self._fenced.set),
                on_error=disk.noticed,
            )
            opened.push_async_callback(asyncio.to_thread, store.close)
            blobs = BlobStore(config.state_dir, keep_uploads=not self._lock.took_over)
            exporter = RunExporter(config.export_dir, blobs, store, tensorboard=config.tensorboard)
            opened.push_async_callback(exporter.close)
            sweeper = Sweeper(store, blobs, keep_rounds=config.keep_rounds)
            opened.push_async_callback(sweeper.close)
            engine = _engine(config, blobs)
            metrics = _metrics(config, engine) if config.metrics_address else None
            self.coordinator = Coordinator(
                store=store,
                blobs=blobs,
                engine=engine,
                observer=Observers(exporter, sweeper, *([metrics.rounds] if metrics else [])),
                worker_timeout_seconds=config.worker_timeout_seconds,
                disk=disk,
                telemetry=metrics.calls if metrics else Silent(),
            )
            opened.push_async_callback(self.coordinator.close)
            await self.coordinator.open()
            sweeper.start([actor.state for actor in self.coordinator.runs()])
            for actor in self.coordinator.runs():
                exporter.restore(actor.state)
                if metrics is not None:
                    report = await self.coordinator.last_report(actor)
                    metrics.rounds.restore(actor.state.run_id, report)
            if self._run is not None:
                await self.coordinator.create_run(self._run, start=True)
            self.enrolment = Enrolment(
                store,
                read_authority(config.authority_dir) if config.authority_dir else None,
                certificate_days=config.certificate_days,
                wall=time.time,
            )
            await self.enrolment.open()
            admission = Admission(admission_rules(config), time.monotonic)
            self.workers = WorkerCalls(self.coordinator, engine, limits=_limits(config))
            self.uploads = Uploads(self.coordinator, self.workers, admission, pace_rules(config))
            if metrics is not None:
                page = metrics.page(config.metrics_address, self.coordinator, admission, disk)
                self.metrics_address = opened.enter_context(page).address
            if self._listens:
                await self._listen(opened)
            self._opened = opened.pop_all()
        return self

    async def _listen(self, opened: contextlib.AsyncExitStack) -> None:
        server = GrpcServer(
            self.coordinator, self.workers, self.uploads, self.enrolment, self._config
        )
        opened.push_async_callback(server.stop)
        self.address = await server.start()
        self.enrolment_address = server.enrolment_address
        self.health_address = server.health_address
        if self._config.port_file is not None:
            _write_atomically(self._config.port_file, self.address)
        log.info(
            "serving",
            address=self.address,
            enrolment=self.enrolment_address,
            health=self.health_address,
            state_dir=str(self._config.state_dir),
        )

    async def __aexit__(self, *_: object) -> None:
        """Drains, then releases everything in the order of dependence."""
        await self._opened.aclose()
        log.info("stopped")

    def _remove_port_file(self) -> None:
        # That of a server which has been replaced may be its successor's.
        if self._config.port_file is not None and self._lock.is_held:
            self._config.port_file.unlink(missing_ok=True)

    async def wait_until_settled(self) -> RunPhase:
        """Returns once the run given has ended and is certified."""
        if self._run is None:
            raise AssertionError("there is no run to wait for")
        actor = self.coordinator.run(self._run.name)
        while not actor.is_settled:
            await actor.wait_for_change(None)
        return actor.state.phase

    async def wait_until_fenced(self) -> None:
        """Returns once another server owns the state directory.

        A commit that is refused tells; where nothing is committed, the lock file does.
        """
        while self._lock.is_held and not self._fenced.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._fenced.wait(), _OWNERSHIP_CHECK_SECONDS)


def _metrics(config: AggregatorConfig, engine: AggregationEngine) -> ServerMetrics:
    # Loading the library takes memory and time, which a server without metrics need not spend.
    from aggregator_service.metrics import ServerMetrics

    ends = functools.partial(certificate_end, config.identity_dir)
    methods = sorted({path.rpartition("/")[2] for path in ROLES})
    return ServerMetrics(functools.partial(torch_readings, engine.device), ends, methods=methods)


def _limits(config: AggregatorConfig) -> Limits:
    return Limits(
        max_update_bytes=config.max_update_bytes,
        max_chunk_bytes=MAX_CHUNK_BYTES,
        heartbeat_interval_seconds=config.heartbeat_interval_seconds,
        idle_timeout_seconds=config.idle_timeout_seconds,
        min_bytes_per_second=config.min_bytes_per_second,
    )


def _engine(config: AggregatorConfig, blobs: BlobStore) -> AggregationEngine:
    weights = config.base_weights
    return AggregationEngine(
        blobs,
        device=config.device,
        threads=config.threads,
        memory_bytes=config.memory_bytes,
        base_weights=BaseWeights(weights, fan_in_fan_out=config.base_fan_in_fan_out)
        if weights
        else None,
    )


async def serve(config: AggregatorConfig, run: RunSpec | None = None) -> int:
    """Serves until SIGTERM or SIGINT, or until the run has ended if the config says so.

    Args:
        config: settings of the process.
        run: run to create and start if it is not there.

    Returns:
        0; 5 if another server has taken the state directory; 7 if `exit_when_done` is set and the
        run has failed.
    """
    share_one_arena()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    async with Aggregator(config, run) as aggregator:
        # What is here now stays: the collector need not look at it again and again.
        gc.freeze()
        replaced = asyncio.ensure_future(aggregator.wait_until_fenced())
        waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(stopping.wait()), replaced]
        if run is not None and config.exit_when_done:
            waits.append(asyncio.ensure_future(_settled_and_told(aggregator)))
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if fenced := replaced.done():
            log.error("fenced", state_dir=str(config.state_dir))
        for wait in waits:
            wait.cancel()
        failed = run is not None and (
            aggregator.coordinator.run(run.name).state.phase is RunPhase.FAILED
        )
    if fenced:
        return ExitCode.FENCED
    return ExitCode.RUN_FAILED if failed and config.exit_when_done else ExitCode.OK


async def _settled_and_told(aggregator: Aggregator) -> None:
    """Waits for the end of the run, then until its workers have heard of it."""
    await aggregator.wait_until_settled()
    await aggregator.coordinator.wait_until_workers_left(timeout_seconds=15.0)


def _write_atomically(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
