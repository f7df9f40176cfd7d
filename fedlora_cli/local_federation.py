"""`fedlora run`: an aggregator and its workers as processes of this machine, from start to end.

The processes are the same ones a federation over many machines has, and they talk gRPC over the
loopback interface; this module only starts them, watches them, starts them again and ends them. It
runs in the main thread: children are bound to the thread that starts them (`fedlora_cli.child`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from fedlora.config import CONFIG_VARIABLE, Config, LocalWorkers
from fedlora.devices import NvmlDevices, usable
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import RunEvent
from fedlora.runs.tasks import Role
from fedlora_cli.display import Display
from fedlora_cli.forked import TRAINING_LIBRARIES, ForkServer, can_fork
from fedlora_cli.processes import (
    ManagedProcess,
    available_cores,
    child_environment,
    describe_exit,
    stop_all,
)
from fedlora_cli.run_folder import RunFolder
from fedlora_cli.supervision import Backoff, is_worth_restarting
from fedlora_cli.watcher import Watcher

__all__ = ["LocalFederation", "check_workers"]

# The aggregator loads torch before it serves; a cold disk makes that slow.
_SERVER_START_SECONDS = 120.0

# An aggregator drains for up to shutdown_grace_seconds (10 by default); workers leave at once.
_STOP_GRACE_SECONDS = 15.0

# Workers hear of the end from the aggregator, which waits for them before it leaves itself.
_WORKERS_LEAVE_SECONDS = 20.0

# How long the news of a run's end may take to reach us after it has reached the workers.
_END_NEWS_SECONDS = 3.0

_POLL_SECONDS = 0.2


class _Stopped(Exception):  # noqa: N818 - no error
    """Somebody wants the run to stop."""


class _Failed(Exception):  # noqa: N818 - told to the user, then an exit code
    """The run cannot go on.

    Args:
        text: why.
        code: exit code of the process whose end is the reason, where one is.
    """

    def __init__(self, text: str, code: int = ExitCode.RUN_FAILED) -> None:
        super().__init__(text)
        self.code = code


@dataclass(slots=True)
class _Worker:
    process: ManagedProcess
    backoff: Backoff = field(default_factory=Backoff)
    ended_at: float | None = None


def check_workers(config: Config) -> LocalWorkers:
    """The workers to start; INVALID_CONFIG where the run could never begin with them."""
    spec, workers = config.need_run(), config.build("workers", LocalWorkers)
    if workers.count < spec.rounds.min_workers:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"workers.count is {workers.count}, but no round begins before rounds.min_workers "
            f"({spec.rounds.min_workers}) are ready",
            hint="Raise the one or lower the other",
        )
    if spec.partition and workers.count > spec.partition.num_slots:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"workers.count is {workers.count}, but the data is split for "
            f"data.partition.num_slots ({spec.partition.num_slots})",
            hint="Make them equal",
        )
    if workers.server_data and not config.section("data").get("public_fraction"):
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            "workers.server_data asks for a worker with public data, and data.public_fraction is 0",
            hint="Set data.public_fraction = 0.1, or leave server_data out",
        )
    return workers


class LocalFederation:
    """One run on this machine.

    Args:
        config: the run and how many workers it gets.
        folder: where its state, logs and results are.
        display: shows it.
    """

    def __init__(self, config: Config, folder: RunFolder, display: Display) -> None:
        self._config = config
        self._spec = config.need_run()
        self._settings = check_workers(config)
        self._folder = folder
        self._display = display
        self._stop_requests = 0
        self._cores = available_cores()
        # A name of its own: the file of an aggregator that was killed must not be taken for ours.
        self._port_file = folder.root / f".address-{os.getpid()}"
        self._server = self._make_server()
        self._fork_server: ForkServer | None = None
        self._workers: list[_Worker] = []
        self._watcher: Watcher | None = None
        self.failure = ""
        """why the run failed, once `run` has returned RUN_FAILED or another failure"""

    def run(self) -> ExitCode:
        """Runs to the end; every process it has started is gone when it returns."""
        previous = {
            signum: signal.signal(signum, self._on_signal)
            for signum in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            with self._display:
                return self._run()
        except _Stopped:
            return ExitCode.INTERRUPTED
        except _Failed as failure:
            self.failure = str(failure)
            return _exit_code(failure.code)
        finally:
            self._close()
            for signum, handler in previous.items():
                signal.signal(signum, handler)

    def _run(self) -> ExitCode:
        self._display.notice("starting the aggregator")
        self._server.start()
        if can_fork() and _is_on_cpu(self._settings.devices):
            self._fork_server = self._make_fork_server()
        address = self._wait_for_address()
        # A restarted aggregator must be found by its workers where it was.
        self._server.environment["FEDLORA_SERVER__ADDRESS"] = address
        self._display.notice(
            f"aggregator on {address}; starting {self._settings.count} workers with "
            f"{self._settings.threads_of(self._cores)} threads each"
        )
        self._workers = [
            _Worker(self._make_worker(i, address)) for i in range(self._settings.count)
        ]
        if self._settings.server_data:
            self._workers.append(_Worker(self._make_server_data(address)))
        for worker in self._workers:
            worker.process.start()
        self._watcher = Watcher(address, self._spec.name)
        self._watcher.start()
        while (code := self._server.poll()) is None or not self._has_ended(code):
            self._check_stop()
            self._show(_POLL_SECONDS)
            self._tend_workers()
        self._watcher.wait_for_end(2.0)
        self._show(0.0)
        return self._conclude()

    # --- while it runs -------------------------------------------------------------------

    def _has_ended(self, code: int) -> bool:
        """Whether an aggregator's end is the end of the run; starts it again once if it is not."""
        run = self._folder.run()
        if run is not None and run.phase.is_final and code in (ExitCode.OK, ExitCode.RUN_FAILED):
            return True
        if self._server.num_starts > 1 or (code > 0 and not is_worth_restarting(code)):
            raise _Failed(self._last_words(self._server, code), code)
        self._display.notice(
            f"the aggregator {describe_exit(code)}; starting it again, it goes on where it was"
        )
        self._server.start()
        return False

    def _tend_workers(self) -> None:
        for worker in self._workers:
            if worker.backoff.is_waiting:
                if worker.backoff.is_over:
                    worker.backoff.begin()
                    worker.ended_at = None
                    worker.process.start()
                continue
            code = worker.process.poll()
            if code is None:
                continue
            worker.ended_at = worker.ended_at or time.monotonic()
            if code == ExitCode.OK and time.monotonic() - worker.ended_at < _END_NEWS_SECONDS:
                # Most likely it has heard of the end of the run before us.
                continue
            if not self._has_run_ended() and self._server.is_running:
                self._restart_later(worker, code)

    def _restart_later(self, worker: _Worker, code: int) -> None:
        process = worker.process
        if code > 0 and not is_worth_restarting(code):
            raise _Failed(self._last_words(process, code), code)
        delay = worker.backoff.next_delay(time.monotonic() - process.started_at)
        if delay is None:
            raise _Failed(f"it died again and again. {self._last_words(process, code)}", code)
        tail = process.tail(5) if code != ExitCode.OK else ""
        self._display.notice(
            f"{process.name} {describe_exit(code)}; starting it again in {delay:.0f} s"
            + (f"; it said last:\n{tail}" if tail else "")
        )

    def _has_run_ended(self) -> bool:
        run = self._folder.run()
        return run is not None and run.phase.is_final

    def _show(self, timeout_seconds: float) -> None:
        if self._watcher is None:
            raise AssertionError("nothing is watched yet")
        for news in self._watcher.take(timeout_seconds):
            if isinstance(news, RunEvent):
                self._display.event(news)
            else:
                self._display.rounds(news)

    def _conclude(self) -> ExitCode:
        deadline = time.monotonic() + _WORKERS_LEAVE_SECONDS
        for worker in self._workers:
            while worker.process.is_running and time.monotonic() < deadline:
                self._check_stop()
                worker.process.wait(_POLL_SECONDS)
        run = self._folder.run()
        if run is None or run.phase is not RunPhase.COMPLETED:
            raise _Failed(run.reason if run and run.reason else "the run was stopped")
        return ExitCode.OK

    def _check_stop(self) -> None:
        if self._stop_requests:
            raise _Stopped

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self._stop_requests += 1

    # --- processes -----------------------------------------------------------------------

    def _make_server(self) -> ManagedProcess:
        folder = self._folder
        environment = self._environment(threads=self._cores) | {
            "FEDLORA_SERVER__ADDRESS": "127.0.0.1:0",
            "FEDLORA_SERVER__STATE_DIR": str(folder.state_dir.absolute()),
            "FEDLORA_SERVER__EXPORT_DIR": str(_export_dir(folder, self._spec.name)),
            "FEDLORA_SERVER__PORT_FILE": str(self._port_file.absolute()),
            "FEDLORA_SERVER__EXIT_WHEN_DONE": "true",
        }
        return ManagedProcess(
            "aggregator",
            "aggregator_service",
            environment=environment,
            log=folder.log_dir / "aggregator.log",
        )

    def _make_worker(self, index: int, address: str) -> ManagedProcess:
        settings = {}
        if self._settings.max_ranks:
            settings["FEDLORA_WORKER__MAX_RANK"] = str(self._settings.max_rank_of(index))
        return self._worker_process(f"worker-{index}", index, address, settings)

    def _metrics_of(self, index: int) -> dict[str, str]:
        """Where a worker shows its metrics: the configuration has one address, on one port."""
        configured = str(self._config.section("worker").get("metrics_address", ""))
        host, separator, port = configured.rpartition(":")
        if not separator or not port.isdigit() or int(port) == 0:
            return {}
        return {"FEDLORA_WORKER__METRICS_ADDRESS": f"{host}:{int(port) + index}"}

    def _make_server_data(self, address: str) -> ManagedProcess:
        settings = {
            "FEDLORA_WORKER__ROLE": Role.SERVER_DATA.value,
            "FEDLORA_DATA__ONLY_PUBLIC": "true",
        }
        return self._worker_process("server-data", self._settings.count, address, settings)

    def _worker_process(
        self, name: str, index: int, address: str, settings: Mapping[str, str]
    ) -> ManagedProcess:
        threads = self._settings.threads_of(self._cores)
        environment = self._environment(threads=threads) | {
            "FEDLORA_WORKER__SERVER": address,
            "FEDLORA_WORKER__NAME": name,
            "FEDLORA_WORKER__RUN_NAME": self._spec.name,
            "FEDLORA_WORKER__DEVICE": self._settings.device_of(index),
            # On one machine several small workers may well be trained on one GPU.
            "FEDLORA_WORKER__SHARE_DEVICE": "true",
            "FEDLORA_WORKER__THREADS": str(threads),
            "FEDLORA_WORKER__CACHE_DIR": str(self._folder.worker_cache_dir(name).absolute()),
        }
        return ManagedProcess(
            name,
            "client_worker",
            environment={**environment, **self._metrics_of(index), **settings},
            log=self._folder.log_dir / f"{name}.log",
            fork_server=self._fork_server,
        )

    def _make_fork_server(self) -> ForkServer:
        threads = self._settings.threads_of(self._cores)
        environment = self._environment(threads=threads)
        log = self._folder.log_dir / "workers.log"
        return ForkServer(TRAINING_LIBRARIES, environment=environment, log=log)

    def _environment(self, *, threads: int) -> dict[str, str]:
        environment = child_environment(os.environ, threads=threads)
        return environment | {CONFIG_VARIABLE: str(self._folder.config_file.absolute())}

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + _SERVER_START_SECONDS
        while time.monotonic() < deadline:
            self._check_stop()
            if self._port_file.exists():
                return self._port_file.read_text().strip()
            code = self._server.poll()
            if code is not None:
                raise _Failed(self._last_words(self._server, code), code)
            self._server.wait(_POLL_SECONDS)
        raise _Failed(f"the aggregator did not serve within {_SERVER_START_SECONDS:.0f} s")

    def _last_words(self, process: ManagedProcess, code: int) -> str:
        tail = process.tail()
        said = f"; it said last:\n{tail}" if tail else ""
        return f"{process.name} {describe_exit(code)} (log: {process.log}){said}"

    def _close(self) -> None:
        """Ends everything: the aggregator first, so that the round stays as it is for a resume."""
        if self._watcher is not None:
            self._watcher.close()
        processes = [[self._server], [w.process for w in self._workers]]
        if any(p.is_running for group in processes for p in group):
            self._display.notice("stopping all processes")
        grace = _STOP_GRACE_SECONDS if self._stop_requests < 2 else 0.0
        stop_all(processes, grace)
        if self._fork_server is not None:
            self._fork_server.close()
        self._port_file.unlink(missing_ok=True)


def _is_on_cpu(devices: Sequence[str]) -> bool:
    """Whether these devices come to the CPU alone on this machine."""
    if not {*devices} <= {"cpu", "auto"}:
        return False
    try:
        return "auto" not in devices or not usable(NvmlDevices().present(), os.environ)
    except FedLoraError:
        # There is a driver and nothing to ask it with: the workers will say so.
        return False


def _export_dir(folder: RunFolder, run_name: str) -> str:
    """A folder in which `<run name>` is the run's folder, as the aggregator wants it.

    That is the parent, unless the folder was given a name of its own: then a link bears the
    run's name.
    """
    root = folder.root.absolute()
    if root.name == run_name:
        return str(root.parent)
    links = folder.state_dir / "export"
    links.mkdir(parents=True, exist_ok=True)
    link = links / run_name
    if not link.is_symlink():
        link.symlink_to(root, target_is_directory=True)
    return str(links.absolute())


def _exit_code(code: int) -> ExitCode:
    """What `fedlora run` ends with when a process ended with `code`."""
    known = {ExitCode.USAGE, ExitCode.REFUSED, ExitCode.DEVICE}
    return ExitCode(code) if code in known else ExitCode.RUN_FAILED
