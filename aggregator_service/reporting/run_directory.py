"""The directory in which a run can be looked at, kept and copied without the server.

    config.toml      the run's configuration, ready for `fedlora run`
    run.json         the run as it stands: phase, workers, adapter layout
    events.jsonl     what happened, one event a line, numbered from 1
    metrics.jsonl    one line per completed round: updates, scores, times, bytes, certificate
    rounds/0003/     the adapter that round 3 published, as a PEFT folder; final/ the last one
    report.html      all of it on one page

Nothing here is the state of a run: a server can write all of it again, and every method may be
called again with what it was given before. Files are replaced whole; only events.jsonl grows.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from aggregator_service.reporting.page import report_html
from aggregator_service.reporting.records import from_record, to_record
from fedlora.adapters.peft_files import write_peft_folder
from fedlora.adapters.spec import AdapterSpec
from fedlora.config import load_config, run_entries, toml_text
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import RoundReport, Run, RunEvent
from fedlora.runs.spec import RunSpec

__all__ = ["RunDirectory", "read_events", "read_rounds", "read_run"]

_WEIGHTS = "adapter_model.safetensors"

# A line of events.jsonl is far shorter; enough of the file's end to hold its last line.
_TAIL_BYTES = 256 * 1024


class RunDirectory:
    """Writes one run directory.

    Args:
        root: the directory; made when something is first written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def write_config(self, spec: RunSpec) -> None:
        """Writes config.toml, unless one that describes the same run is there.

        `fedlora run` writes a fuller one, with the sections of the workers and their data.
        """
        path = self.root / "config.toml"
        if path.exists():
            try:
                if load_config(path, environ={}).run == spec:
                    return
            except FedLoraError:
                pass
        _replace(path, toml_text(run_entries(spec)))

    def append_event(self, event: RunEvent) -> None:
        """Adds a stored event to events.jsonl; one that is there already is left alone.

        The first event of another run under the same name begins the file anew.
        """
        path = self.root / "events.jsonl"
        last = self._last_sequence(path)
        if event.sequence == 1 and last and _first_record(path) != to_record(event):
            for stale in (path, self.root / "metrics.jsonl", self.root / "run.json"):
                stale.unlink(missing_ok=True)
            last = 0
        if event.sequence <= last:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(_line(event))

    def append_metrics(self, report: RoundReport) -> None:
        """Puts a round's line into metrics.jsonl, in place of an earlier one of that round."""
        path = self.root / "metrics.jsonl"
        lines = {record["round"]: json.dumps(record) + "\n" for record in _records(path)}
        lines[report.round] = _line(report)
        _replace(path, "".join(lines[r] for r in sorted(lines)))

    def export_adapter(self, name: str, weights: Path, spec: AdapterSpec, rank: int) -> None:
        """Writes an adapter as a folder that `PeftModel.from_pretrained` reads.

        Args:
            name: "final", or the round's folder, "rounds/0003".
            weights: safetensors file with PEFT's keys; linked where the file system can.
            spec: the run's adapter.
            rank: rank of these weights.
        """
        folder = self.root / name
        if folder.exists():
            if _same_file(folder / _WEIGHTS, weights):
                return
            shutil.rmtree(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_peft_folder(folder, spec=spec, rank=rank, weights=weights)

    def write_report(self, run: Run, rounds: Sequence[RoundReport]) -> None:
        """Writes run.json and report.html."""
        _replace(self.root / "run.json", json.dumps(to_record(run), indent=1) + "\n")
        _replace(self.root / "report.html", report_html(run, rounds))

    def _last_sequence(self, path: Path) -> int:
        """Number of the last event written; half a line left by a crash is cut off."""
        try:
            with path.open("rb+") as file:
                end = file.seek(0, os.SEEK_END)
                start = max(0, end - _TAIL_BYTES)
                file.seek(start)
                tail = file.read()
                whole = tail.rfind(b"\n") + 1
                if whole < len(tail):
                    file.truncate(start + whole)
        except FileNotFoundError:
            return 0
        lines = tail[:whole].splitlines()
        return int(json.loads(lines[-1])["sequence"]) if lines else 0


def read_run(root: Path) -> Run:
    """The run of a run directory; NOT_FOUND where there is none."""
    path = root / "run.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FedLoraError(
            Reason.NOT_FOUND,
            f"{str(root)!r} is no run directory: it has no run.json",
            hint="`fedlora run` writes one to runs/<run name>",
        ) from None
    return from_record(record, Run)


def read_rounds(root: Path) -> tuple[RoundReport, ...]:
    """The completed rounds of a run directory, in order."""
    return tuple(from_record(record, RoundReport) for record in _records(root / "metrics.jsonl"))


def read_events(root: Path) -> tuple[RunEvent, ...]:
    """The events of a run directory, in order."""
    return tuple(from_record(record, RunEvent) for record in _records(root / "events.jsonl"))


def _line(value: object) -> str:
    return json.dumps(to_record(value), allow_nan=False) + "\n"


def _records(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            # Half a line is an event that was being written when the machine stopped.
            if line.endswith("\n"):
                yield json.loads(line)


def _first_record(path: Path) -> object:
    return next(iter(_records(path)), None)


def _same_file(there: Path, weights: Path) -> bool:
    if not there.exists():
        return False
    return there.samefile(weights) or filecmp.cmp(there, weights, shallow=False)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
