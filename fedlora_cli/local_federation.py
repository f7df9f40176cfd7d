"""`fedlora run`: an aggregator and its workers as processes of this machine, from start to end.

The processes (`fedlora_cli.local_processes`) talk gRPC over the loopback interface; this module
only starts them, watches them, starts them again and ends them. It runs in the main thread:
children are bound to the thread that starts them (`fedlora_cli.child`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import FrameType

from fedlora.config import Config, LocalWorkers
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import RunEvent
from fedlora_cli.display import Display
from fedlora_cli.local_processes import LocalProcesses
from fedlora_cli.processes import ManagedProcess, describe_exit, on_stop_signals, stop_all
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
        self._processes = LocalProcesses(config, self._settings, folder)
        self._server = self._processes.aggregator()
        self._workers: list[_Worker] = []
        self._watcher: Watcher | None = None
        self.failure = ""
        """why the run failed, once `run` has returned RUN_FAILED or another failure"""

    def run(self) -> ExitCode:
        """Runs to the end; every process it has started is gone when it returns."""
        with on_stop_signals(self._on_signal):
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

    def _run(self) -> ExitCode:
        self._display.notice("starting the aggregator")
        self._server.start()
        self._processes.prepare()
        address = self._wait_for_address()
        # A restarted aggregator must be found by its workers where it was.
        self._server.environment["FEDLORA_SERVER__ADDRESS"] = address
        self._display.notice(
            f"aggregator on {address}; starting {self._settings.count} workers with "
            f"{self._processes.threads} threads each"
        )
        self._workers = [_Worker(process) for process in self._processes.workers(address)]
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
        if self._has_run_ended() and code in (ExitCode.OK, ExitCode.RUN_FAILED):
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

    def _wait_for_address(self) -> str:
        deadline = time.monotonic() + _SERVER_START_SECONDS
        while time.monotonic() < deadline:
            self._check_stop()
            if self._processes.port_file.exists():
                return self._processes.port_file.read_text().strip()
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
        self._processes.close()


def _exit_code(code: int) -> ExitCode:
    """What `fedlora run` ends with when a process ended with `code`."""
    known = {ExitCode.USAGE, ExitCode.REFUSED, ExitCode.DEVICE}
    return ExitCode(code) if code in known else ExitCode.RUN_FAILED
