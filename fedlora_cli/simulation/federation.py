"""One run from its first round to its last, with all its workers as threads of this process.

The server is `Aggregator`, deaf to the network; each worker is the `Runner` of a worker process,
with a `LocalTrainer` of its own. They take turns, and wait for their tasks together: torch's random
generator belongs to the whole process, and a core that is shared does not get faster. So the
numbers are those of worker processes with as many threads each (test_simulation.py holds them
equal).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from aggregator_service.app import Aggregator
from aggregator_service.config import AggregatorConfig
from client_worker.app import offered
from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from client_worker.patience import Patience
from client_worker.runner import Runner
from client_worker.stop import StopRequest
from client_worker.training.trainer import LocalTrainer
from fedlora.config import Config, LocalWorkers
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.runs.phase import RunPhase
from fedlora.runs.tasks import Registration, Role
from fedlora.telemetry import bind_context
from fedlora_cli.processes import describe_exit
from fedlora_cli.simulation.direct import DirectFederation

__all__ = ["simulate"]

_NEVER_SECONDS = 7 * 24 * 3600.0
"""a silence that counts as a loss: threads of one process are lost together"""


def simulate(config: Config, *, device: str, export_dir: Path, scratch: Path) -> None:
    """Runs a configuration's federation to its end.

    Args:
        config: the run, its workers and their data.
        device: of workers and server, as `client_worker.device.resolve_device` returned it.
        export_dir: where the server writes the run's folder, for people.
        scratch: an empty folder, for what need not be kept.

    Raises:
        FedLoraError: WRONG_PHASE if the run has failed, INTERNAL if a worker has.
    """
    server = AggregatorConfig(
        state_dir=scratch / "state",
        export_dir=export_dir,
        device=device if device == "cpu" else "cuda:0",
        threads=config.build("workers", LocalWorkers).threads_of(1),
        worker_timeout_seconds=_NEVER_SECONDS,
    )
    asyncio.run(_simulate(config, server, device, scratch))


async def _simulate(config: Config, server: AggregatorConfig, device: str, scratch: Path) -> None:
    spec = config.need_run()
    loop = asyncio.get_running_loop()
    async with Aggregator(server, spec, listens=False) as aggregator:
        actor = aggregator.coordinator.run(spec.name)
        turn = threading.Lock()
        crew = [
            _Worker(settings, aggregator, loop, turn, scratch)
            for settings in _settings(config, device)
        ]
        with ThreadPoolExecutor(len(crew), thread_name_prefix="worker") as threads:
            ended = [loop.run_in_executor(threads, worker.run) for worker in crew]
            settled = asyncio.ensure_future(aggregator.wait_until_settled())
            try:
                await asyncio.gather(settled, *ended)
            finally:
                for worker in crew:
                    worker.stop.request()
                # Here and not where the pool closes: they take their leave through this loop.
                await asyncio.gather(*ended, return_exceptions=True)
        if actor.state.phase is not RunPhase.COMPLETED:
            raise FedLoraError(
                Reason.WRONG_PHASE, f"the run has {actor.state.phase}: {actor.state.reason}"
            )


class _Worker:
    """One worker, to be run in a thread."""

    def __init__(
        self,
        config: WorkerConfig,
        aggregator: Aggregator,
        loop: asyncio.AbstractEventLoop,
        turn: threading.Lock,
        scratch: Path,
    ) -> None:
        self.stop = StopRequest()
        self._config = config
        self._turn = turn
        self._runner = Runner(
            config,
            name=config.name,
            federation=DirectFederation(
                aggregator.workers,
                aggregator.uploads,
                loop,
                guard=self.stop.cancelling,
                turn=turn,
            ),
            create_trainer=self._create_trainer,
            capabilities=offered(config),
            stop=self.stop,
            patience=Patience(limit_seconds=0.0, sleep=self.stop.sleep),
            scratch=scratch / config.name,
        )

    def run(self) -> None:
        """Works until the run is over; a worker that ends for another reason ends them all."""
        bind_context(worker=self._config.name)
        with self._turn:
            code = self._runner.run()
        if code is not ExitCode.OK:
            raise FedLoraError(
                Reason.INTERNAL, f"{self._config.name} {describe_exit(code)}; its log says why"
            )

    def _create_trainer(self, registration: Registration) -> LocalTrainer:
        config = self._config
        return LocalTrainer.create(
            registration.run,
            rank=registration.rank,
            data=config.data,
            slot=registration.data_slot,
            device=config.device,
            threads=config.threads,
        )


def _settings(config: Config, device: str) -> Iterator[WorkerConfig]:
    workers = config.build("workers", LocalWorkers)
    each = WorkerConfig(
        run_name=config.need_run().name,
        device=device,
        data=config.build("data", DataConfig),
        threads=workers.threads_of(1),
    )
    for index in range(workers.count):
        yield replace(each, name=f"worker-{index}", max_rank=workers.max_rank_of(index))
    if workers.server_data:
        public = replace(each.data, only_public=True)
        yield replace(each, name="server-data", role=Role.SERVER_DATA, data=public)
