"""One worker ten times slower than the others: wall-clock time to the same accuracy, by engine.

    python benchmarks/stragglers.py [--target 0.73] [--minutes 15] [--out PAGE]

Four real workers and a real aggregator run the quickstart's model and data on this machine. The
process of the last worker is stopped and continued by signals, so that it runs a tenth of the time;
its heartbeats come when it runs. Every engine is given the same data, model, seed and settings of
training; a run ends with the first published version that reaches the target on the shared test
set, or when the time is up. The page is written anew by each run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from aggregator_service.reporting.run_directory import read_events
from fedlora.runs.report import EventType, RunEvent

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "examples" / "quickstart.toml"
NAMES = tuple(f"worker-{i}" for i in range(4))

_PERIOD_SECONDS = 0.5
_SHARE = 0.1
"""of each period in which the slow worker runs"""


@dataclass(frozen=True)
class Engine:
    """A way to close rounds."""

    title: str
    settings: tuple[str, ...]


ENGINES = (
    Engine(
        "synchronous, waits for all",
        ("rounds.num_rounds=12", "rounds.quorum=4", "rounds.deadline_seconds=3600"),
    ),
    Engine(
        "synchronous, quorum of 3, deadline 30 s",
        ("rounds.num_rounds=12", "rounds.quorum=3", "rounds.deadline_seconds=30"),
    ),
    Engine(
        "the same, late updates carried",
        (
            "rounds.num_rounds=12",
            "rounds.quorum=3",
            "rounds.deadline_seconds=30",
            "rounds.late_updates=carry",
        ),
    ),
    Engine(
        "buffered, K = 2",
        (
            "rounds.num_rounds=24",
            "rounds.engine=buffered",
            "rounds.buffer_size=2",
            "rounds.quorum=2",
            "rounds.max_staleness=24",
        ),
    ),
    Engine(
        "asynchronous, alpha = 0.6",
        (
            "rounds.num_rounds=48",
            "rounds.engine=async",
            "rounds.quorum=1",
            "rounds.evaluate_every=2",
            "rounds.max_staleness=48",
        ),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=float, default=0.73, help="accuracy on the test set")
    parser.add_argument("--minutes", type=float, default=15.0, help="longest time of one run")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of engines, from 0")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "stragglers.md")
    options = parser.parse_args()
    chosen = [ENGINES[i] for i in options.only or range(len(ENGINES))]
    measured = []
    for engine in chosen:
        with tempfile.TemporaryDirectory(prefix="stragglers-") as folder:
            events = _run(engine, Path(folder), options.target, 60 * options.minutes)
            measured.append(_row(engine, events, options.target))
            print(measured[-1], flush=True)
    options.out.write_text(_page(measured, options.target, options.minutes))


# --- one run -------------------------------------------------------------------------------------


def _run(engine: Engine, folder: Path, target: float, seconds: float) -> tuple[RunEvent, ...]:
    environment = {**os.environ, "FEDLORA_LOG_LEVEL": "WARNING", "OMP_NUM_THREADS": "1"}
    settings = [f"--set={s}" for s in (*engine.settings, "rounds.min_workers=4")]
    port_file, root = folder / "address", folder / "runs"
    server = ["serve", str(CONFIG), "--address=127.0.0.1:0", *settings]
    server += [f"--set=server.state_dir={folder / 'state'}", f"--set=server.export_dir={root}"]
    server += [f"--set=server.port_file={port_file}", "--set=server.device=cpu"]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(server, environment))]
        while not port_file.exists():
            _check(processes)
            time.sleep(0.1)
        for name in NAMES:
            worker = ["worker", str(CONFIG), f"--server={port_file.read_text()}", f"--name={name}"]
            worker += ["--device=cpu", "--set=worker.threads=1", *settings]
            processes.append(stack.enter_context(_process(worker, environment)))
        stack.enter_context(_slowed(processes[-1].pid))
        until = time.monotonic() + seconds
        events: tuple[RunEvent, ...] = ()
        while time.monotonic() < until and not _ended(events, target):
            _check(processes[:1])
            time.sleep(1.0)
            with contextlib.suppress(FileNotFoundError):
                events = read_events(root / "quickstart")
    return events


@contextlib.contextmanager
def _process(arguments: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "fedlora_cli", *arguments]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            # A stopped process hears nothing else.
            process.send_signal(signal.SIGCONT)
            process.terminate()


@contextlib.contextmanager
def _slowed(pid: int) -> Iterator[None]:
    """Lets a process run a tenth of the time."""
    ending = threading.Event()

    def beat() -> None:
        while not ending.wait(_PERIOD_SECONDS * _SHARE):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                ending.wait(_PERIOD_SECONDS * (1 - _SHARE))
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()


def _check(processes: Sequence[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is not None:
            raise SystemExit(f"{process.args} ended with {process.returncode}")


def _ended(events: Sequence[RunEvent], target: float) -> bool:
    over = (EventType.RUN_COMPLETED, EventType.RUN_FAILED)
    return any(e.type in over or _accuracy(e) >= target for e in events)


def _accuracy(event: RunEvent) -> float:
    found = event.detail.get("test_accuracy") if event.type is EventType.ROUND_COMPLETED else None
    return float(found) if isinstance(found, int | float) else 0.0


# --- the page ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    engine: Engine
    seconds: float | None
    """from the first round's beginning to the version that reaches the target"""
    rounds: int
    best: float
    updates: dict[str, int]


def _row(engine: Engine, events: Sequence[RunEvent], target: float) -> _Row:
    begun = next(e.time for e in events if e.type is EventType.ROUND_STARTED)
    reached = next((e.time for e in events if _accuracy(e) >= target), None)
    scored = [e for e in events if e.type is EventType.ROUND_COMPLETED]
    updates = dict.fromkeys(NAMES, 0)
    for event in events:
        if event.type is EventType.UPDATE_COMMITTED and event.round:
            updates[event.worker] += 1
    return _Row(
        engine=engine,
        seconds=None if reached is None else reached - begun,
        rounds=len(scored),
        best=max((_accuracy(e) for e in scored), default=0.0),
        updates=updates,
    )


def _page(rows: Sequence[_Row], target: float, minutes: float) -> str:
    first = rows[0].seconds
    lines = [
        "# One slow worker",
        "",
        (
            f"`python benchmarks/stragglers.py --target {target:g} --minutes {minutes:g}`: the "
            "quickstart's model and data with four real workers, of which the last runs a tenth of "
            f"the time. {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores "
            f"({platform.machine()}), shared by all. Seconds from the beginning of the first "
            f"round to the version that reaches {target:.0%} on the shared test set."
        ),
        "",
        (
            "| engine | seconds | against waiting | rounds | best accuracy seen | updates, the "
            "slow worker's last |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row.seconds / first:.2f}" if row.seconds and first else "–"
        seconds = "not reached" if row.seconds is None else f"{row.seconds:.0f}"
        counts = " + ".join(str(n) for n in row.updates.values())
        lines.append(
            f"| {row.engine.title} | {seconds} | {ratio} | {row.rounds} | {row.best:.1%} | "
            f"{counts} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
