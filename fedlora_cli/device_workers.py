"""`fedlora workers`: one supervised worker process per device of this machine."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live

from fedlora.config import CONFIG_VARIABLE, Config, OriginKind, toml_text
from fedlora.devices import Devices, Reading
from fedlora.devices.base import VISIBLE
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.process_limits import available_cores
from fedlora_cli.console import errors
from fedlora_cli.device_choice import Place, worker_names
from fedlora_cli.device_table import WorkerRow, workers_table
from fedlora_cli.processes import (
    ManagedProcess,
    child_environment,
    describe_exit,
    metrics_address,
    on_stop_signals,
    stop_all,
)
from fedlora_cli.supervision import Backoff, is_worth_restarting

__all__ = ["DeviceWorkers"]

# A worker that is told to stop says goodbye to the server and leaves its work.
_STOP_GRACE_SECONDS = 20.0

_POLL_SECONDS = 0.2
_REDRAW_SECONDS = 1.0


@dataclass(slots=True)
class _Slot:
    place: Place
    process: ManagedProcess
    backoff: Backoff = field(default_factory=lambda: Backoff(most=0))
    code: int | None = None
    """how it ended for good"""

    @property
    def state(self) -> str:
        """In words."""
        if self.code is not None:
            return "done" if self.code == ExitCode.OK else describe_exit(self.code)
        return "waits to be restarted" if self.backoff.is_waiting else f"runs as {self.process.pid}"


class DeviceWorkers:
    """A worker process per device, kept running until each has ended for good.

    Args:
        config: what the workers are told.
        places: one worker each.
        devices: of this machine.
        name_prefix: of the workers' names.
        log_dir: where their output goes.
        identities: folder with a folder for each worker's name, its `worker.identity_dir`; None
            leaves that to the configuration, which can only know one.
        program: the module that each process runs.
        console: where news and, on a terminal, the table go.
    """

    def __init__(
        self,
        config: Config,
        places: tuple[Place, ...],
        *,
        devices: Devices,
        name_prefix: str,
        log_dir: Path,
        identities: Path | None = None,
        program: str = "client_worker",
        console: Console | None = None,
    ) -> None:
        self._config = config
        self._places = places
        self._names = worker_names(name_prefix, places)
        self._devices = devices
        self._log_dir = log_dir
        self._identities = _checked(identities, config, places)
        self._program = program
        self._console = console or errors()
        self._stop_requests = 0
        self._slots: list[_Slot] = []

    def run(self) -> ExitCode:
        """Runs until every worker has ended for good, or a signal comes.

        Returns:
            OK if the run is over or SIGTERM came, INTERRUPTED after Ctrl-C, otherwise the code of
            the first worker that could not go on.
        """
        last_signal: list[int] = []

        def on_signal(signum: int, _frame: FrameType | None) -> None:
            last_signal.append(signum)
            self._stop_requests += 1

        with (
            tempfile.TemporaryDirectory(prefix="fedlora-workers-") as scratch,
            on_stop_signals(on_signal),
        ):
            try:
                self._start(self._written_config(Path(scratch)))
                self._tend()
            finally:
                grace = _STOP_GRACE_SECONDS if self._stop_requests < 2 else 0.0
                stop_all([[slot.process for slot in self._slots]], grace)
        if last_signal:
            return ExitCode.INTERRUPTED if last_signal[0] == signal.SIGINT else ExitCode.OK
        bad = [slot.code for slot in self._slots if slot.code]
        return ExitCode(bad[0]) if bad else ExitCode.OK

    def _written_config(self, folder: Path) -> Path:
        """All that the flags and variables of this process have said, as the workers' file."""
        file = folder / "config.toml"
        written = [e for e in self._config.entries if e.origin.kind is not OriginKind.DEFAULT]
        file.write_text(toml_text(written), encoding="utf-8")
        return file

    def _start(self, config_file: Path) -> None:
        threads = max(1, available_cores() // len(self._places))
        shared = child_environment(os.environ, threads=threads) | {
            CONFIG_VARIABLE: str(config_file)
        }
        first_page = self._config.section("worker")["metrics_address"]
        for index, (name, place) in enumerate(zip(self._names, self._places, strict=True)):
            log = self._log_dir / f"{name}.log"
            environment = shared | _own_variables(name, place, self._identities)
            environment["FEDLORA_WORKER__METRICS_ADDRESS"] = metrics_address(first_page, index)
            process = ManagedProcess(name, self._program, environment=environment, log=log)
            process.start()
            self._say(f"{name} started, log {log}")
            self._slots.append(_Slot(place, process))

    def _tend(self) -> None:
        with self._live() as live:
            redraw_at = 0.0
            while not self._stop_requests and any(s.code is None for s in self._slots):
                for slot in self._slots:
                    self._tend_one(slot)
                if live is not None and time.monotonic() >= redraw_at:
                    live.update(workers_table([self._row(s) for s in self._slots]), refresh=True)
                    redraw_at = time.monotonic() + _REDRAW_SECONDS
                time.sleep(_POLL_SECONDS)

    def _tend_one(self, slot: _Slot) -> None:
        if slot.code is not None:
            return
        if slot.backoff.is_waiting:
            if slot.backoff.is_over:
                slot.backoff.begin()
                slot.process.start()
            return
        code = slot.process.poll()
        if code is None:
            return
        name = slot.process.name
        if code == ExitCode.OK:
            slot.code = code
            self._say(f"{name} is done")
        elif code > 0 and not is_worth_restarting(code):
            slot.code = code
            self._say(f"{name} {describe_exit(code)}; it said last:\n{slot.process.tail()}")
        else:
            delay = slot.backoff.next_delay(time.monotonic() - slot.process.started_at)
            self._say(f"{name} {describe_exit(code)}; starting it again in {delay:.1f} s")

    # --- what is shown ---------------------------------------------------------------------

    def _live(self) -> AbstractContextManager[Live | None]:
        if not self._console.is_terminal:
            return nullcontext()
        return Live(console=self._console, auto_refresh=False, transient=True)

    def _row(self, slot: _Slot) -> WorkerRow:
        return WorkerRow(
            name=slot.process.name,
            device=slot.place.device,
            state=slot.state,
            num_restarts=slot.process.num_starts - 1,
            reading=self._reading(slot.place),
        )

    def _reading(self, place: Place) -> Reading | None:
        if place.device is None:
            return None
        try:
            return self._devices.read(place.device.uuid)
        except FedLoraError:
            # The worker on it has more to say of that, in its log.
            return None

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _checked(identities: Path | None, config: Config, places: tuple[Place, ...]) -> Path | None:
    one = [
        key
        for key in ("identity_dir", "invitation", "token_file")
        if config.section("worker").get(key)
    ]
    if identities is None and one and len(places) > 1:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"worker.{one[0]} is one worker's, and there are {len(places)} to be started",
            hint="Use --identities DIR with a folder for each name; --list tells the names",
        )
    return identities


def _own_variables(name: str, place: Place, identities: Path | None) -> dict[str, str]:
    """What one worker is told and the others are not."""
    variables = {
        "FEDLORA_WORKER__NAME": name,
        "FEDLORA_WORKER__DEVICE": place.worker_device,
        # Set before its Python starts, so that nothing it loads can see another device.
        VISIBLE: place.device.uuid if place.device else "",
    }
    if place.index is not None:
        variables["FEDLORA_WORKER__DATA_SLOT"] = str(place.index)
    if identities is not None:
        variables["FEDLORA_WORKER__IDENTITY_DIR"] = str((identities / name).absolute())
    return variables
