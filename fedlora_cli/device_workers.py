"""`fedlora workers`: one supervised worker process per device of this machine."""

from __future__ import annotations

import os
import re
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from fedlora.config import CONFIG_VARIABLE, Config, OriginKind, toml_text
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora_cli.console import errors
from fedlora_cli.processes import (
    ManagedProcess,
    available_cores,
    child_environment,
    describe_exit,
    stop_all,
)
from fedlora_cli.supervision import Backoff, is_worth_restarting

__all__ = ["DeviceWorkers", "select_devices"]

# A worker that is told to stop says goodbye to the server and leaves its work.
_STOP_GRACE_SECONDS = 20.0

_POLL_SECONDS = 0.2


def select_devices(wanted: str) -> tuple[str, ...]:
    """Devices as workers name them: "cpu", "cuda:0", "cuda:GPU-<uuid>".

    Args:
        wanted: "all" for every GPU, or a comma-separated list of indices, UUIDs and "cpu".

    Raises:
        FedLoraError: DEVICE_UNAVAILABLE if all GPUs are wanted and there is none; INVALID_CONFIG
            for an entry that is no device.
    """
    if wanted.strip() == "all":
        return tuple(f"cuda:{uuid}" for uuid in _gpu_uuids())
    entries = [entry.strip() for entry in wanted.split(",") if entry.strip()]
    devices = tuple(_device(entry) for entry in entries)
    if not devices:
        raise FedLoraError(
            Reason.INVALID_CONFIG, "--devices names no device", hint="For example --devices 0,1"
        )
    gpus = [d for d in devices if d != "cpu"]
    if len(set(gpus)) < len(gpus):
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"--devices names a GPU twice: {wanted}",
            hint="Each worker needs a GPU of its own",
        )
    return devices


def _device(entry: str) -> str:
    if entry == "cpu":
        return entry
    name = entry.removeprefix("cuda:")
    if name.isdigit() or name.startswith(("GPU-", "MIG-")):
        return f"cuda:{name}"
    raise FedLoraError(
        Reason.INVALID_CONFIG,
        f"--devices: expected all, cpu, an index or a UUID, got {entry!r}",
        hint="`nvidia-smi -L` lists what there is",
    )


def _gpu_uuids() -> list[str]:
    try:
        import pynvml
    except ImportError:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            "finding all GPUs needs nvidia-ml-py, which is not installed",
            hint="pip install 'fedlora[worker]', or name the devices: --devices 0,1",
        ) from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise FedLoraError(
            Reason.DEVICE_UNAVAILABLE,
            f"there is no NVIDIA GPU here: {error}",
            hint="Use --devices cpu",
        ) from None
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return [str(pynvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


@dataclass(slots=True)
class _Slot:
    process: ManagedProcess
    backoff: Backoff = field(default_factory=Backoff)
    code: int | None = None
    """how it ended for good"""


class DeviceWorkers:
    """A worker process per device, kept running until each has ended for good.

    Args:
        config: what the workers are told.
        devices: one worker each.
        name_prefix: names are prefix and device, "host-cuda-0"; None takes the host name.
        log_dir: where their output goes.
    """

    def __init__(
        self,
        config: Config,
        devices: tuple[str, ...],
        *,
        name_prefix: str | None,
        log_dir: Path,
    ) -> None:
        self._config = config
        self._devices = devices
        self._prefix = name_prefix or socket.gethostname()
        self._log_dir = log_dir
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

        previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        with tempfile.TemporaryDirectory(prefix="fedlora-workers-") as scratch:
            try:
                self._start(Path(scratch))
                while not self._stop_requests and any(s.code is None for s in self._slots):
                    for slot in self._slots:
                        self._tend(slot)
                    time.sleep(_POLL_SECONDS)
            finally:
                grace = _STOP_GRACE_SECONDS if self._stop_requests < 2 else 0.0
                stop_all([[slot.process for slot in self._slots]], grace)
                for signum, handler in previous.items():
                    signal.signal(signum, handler)
        if last_signal:
            return ExitCode.INTERRUPTED if last_signal[0] == signal.SIGINT else ExitCode.OK
        bad = [slot.code for slot in self._slots if slot.code]
        return ExitCode(bad[0]) if bad and bad[0] > 0 else ExitCode.OK

    def _start(self, scratch: Path) -> None:
        # All that the flags and variables of this process have said goes to the workers in a file.
        file = scratch / "config.toml"
        written = [e for e in self._config.entries if e.origin.kind is not OriginKind.DEFAULT]
        file.write_text(toml_text(written), encoding="utf-8")
        threads = max(1, available_cores() // len(self._devices))
        seen: dict[str, int] = {}
        for device in self._devices:
            name = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{self._prefix}-{device}")[:120]
            count = seen[name] = seen.get(name, 0) + 1
            name = name if count == 1 else f"{name}-{count}"
            environment = child_environment(os.environ, threads=threads) | {
                CONFIG_VARIABLE: str(file),
                "FEDLORA_WORKER__NAME": name,
                "FEDLORA_WORKER__DEVICE": device,
            }
            log = self._log_dir / f"{name}.log"
            process = ManagedProcess(name, "client_worker", environment=environment, log=log)
            process.start()
            _say(f"{name} started, log {log}")
            self._slots.append(_Slot(process, Backoff(most=0)))

    def _tend(self, slot: _Slot) -> None:
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
            _say(f"{name} is done")
        elif code > 0 and not is_worth_restarting(code):
            slot.code = code
            _say(f"{name} {describe_exit(code)}; it said last:\n{slot.process.tail()}")
        else:
            delay = slot.backoff.next_delay(time.monotonic() - slot.process.started_at)
            _say(f"{name} {describe_exit(code)}; starting it again in {delay:.0f} s")


def _say(text: str) -> None:
    errors().print(text, markup=False, highlight=False, soft_wrap=True)
