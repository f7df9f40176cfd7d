"""Runs the cells of a study that have no result yet: a process each, several at a time.

A process per cell: nothing of one federation is left for the next, a cell that is killed for
memory takes no other with it, and each has its log. Stopped at any moment, a study loses the cells
it was at; everything else is in the results, and the same command goes on.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fedlora.config import CONFIG_VARIABLE
from fedlora.exit_codes import ExitCode
from fedlora.process_limits import available_cores
from fedlora_cli.configuration import load
from fedlora_cli.forked import TRAINING_LIBRARIES, ForkServer, can_fork
from fedlora_cli.processes import (
    ManagedProcess,
    child_environment,
    describe_exit,
    on_stop_signals,
    stop_all,
)
from fedlora_cli.run_folder import RunFolder
from fedlora_cli.study.cells import Cell
from fedlora_cli.study.display import StudyDisplay
from fedlora_cli.study.results import Results, result_of

__all__ = ["StudyRunner"]

_LIBRARIES = (*TRAINING_LIBRARIES, "fedlora_cli.simulation.federation")

_POLL_SECONDS = 0.2
_STOP_GRACE_SECONDS = 2.0

_ROUND_SECONDS = 7 * 24 * 3600.0
"""deadline of a round: workers that train one after the other may be late"""


@dataclass(frozen=True, slots=True)
class _Running:
    cell: Cell
    folder: RunFolder
    process: ManagedProcess
    device: str


class StudyRunner:
    """Runs cells.

    Args:
        config: configuration that the cells' overrides are for.
        results: finished cells go there.
        work_dir: a folder for each cell, with its report and log.
        jobs: cells at a time; 0 for one a GPU, or one a core.
        devices: taken in turn.
        display: shows it.
    """

    def __init__(
        self,
        config: Path,
        results: Results,
        *,
        work_dir: Path,
        jobs: int,
        devices: Sequence[str],
        display: StudyDisplay,
    ) -> None:
        cores = available_cores()
        self._config = config
        self._results = results
        self._work_dir = work_dir
        jobs = jobs or (cores if devices == ("cpu",) else len(devices))
        self._threads = max(1, cores // jobs)
        self._free = deque(itertools.islice(itertools.cycle(devices), jobs))
        self._is_forked = can_fork() and devices == ("cpu",)
        self._fork_server: ForkServer | None = None
        self._display = display
        self._stopping = False
        self.failures: list[str] = []
        """cells that have failed, with their last words"""

    def run(self, cells: Sequence[Cell]) -> ExitCode:
        """Runs cells to their end; no process is left when it returns."""
        waiting, running = deque(cells), list[_Running]()
        if waiting and self._is_forked:
            environment = child_environment(os.environ, threads=self._threads)
            log = self._work_dir.with_name(f"{self._work_dir.name}.log")
            self._fork_server = ForkServer(_LIBRARIES, environment=environment, log=log)
        try:
            with on_stop_signals(self._stop), self._display:
                while (waiting or running) and not self._stopping:
                    while waiting and self._free:
                        running.append(self._start(waiting.popleft()))
                    running = [at for at in running if not self._ended(at)]
                    self._display.show([(r.cell, _rounds_done(r.folder)) for r in running])
                    time.sleep(_POLL_SECONDS)
        finally:
            stop_all([[at.process for at in running]], _STOP_GRACE_SECONDS)
            if self._fork_server is not None:
                self._fork_server.close()
            for at in running:
                shutil.rmtree(at.folder.root)
        if self._stopping:
            return ExitCode.INTERRUPTED
        return ExitCode.RUN_FAILED if self.failures else ExitCode.OK

    def _start(self, cell: Cell) -> _Running:
        folder = RunFolder((self._work_dir / cell.run_name).absolute())
        device = self._free.popleft()
        settings = [
            f"run.name={cell.run_name}",
            f"rounds.deadline_seconds={_ROUND_SECONDS}",
            f"workers.threads_per_worker={self._threads}",
            f"workers.devices={device}",
        ]
        config = load(self._config, [*cell.overrides, *settings], environ={})
        folder.prepare(config, fresh=True)
        environment = child_environment(os.environ, threads=self._threads)
        process = ManagedProcess(
            cell.label,
            "fedlora_cli.simulation",
            environment=environment | {CONFIG_VARIABLE: str(folder.config_file)},
            log=folder.log_dir / "cell.log",
            fork_server=self._fork_server,
        )
        process.start()
        return _Running(cell, folder, process, device)

    def _ended(self, at: _Running) -> bool:
        """Whether a cell's process has ended; if so, keeps what it came to."""
        code = at.process.poll()
        if code is None:
            return False
        at.process.close()
        self._free.append(at.device)
        if code == ExitCode.OK:
            seconds = time.monotonic() - at.process.started_at
            result = result_of(at.cell, at.folder.rounds(), seconds=seconds)
            self._results.add(result)
            # The last adapter is in `final`; a study of a hundred cells has many others.
            shutil.rmtree(at.folder.root / "rounds")
            self._display.done(at.cell, result)
        else:
            said = f"{at.cell.label} {describe_exit(code)} (log: {at.process.log}); it said last:"
            self.failures.append(f"{said}\n{at.process.tail(8)}")
            self._display.failed(at.cell, describe_exit(code))
        return True

    def _stop(self, _signum: int, _frame: FrameType | None) -> None:
        self._stopping = True


def _rounds_done(folder: RunFolder) -> int:
    metrics = folder.root / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0
