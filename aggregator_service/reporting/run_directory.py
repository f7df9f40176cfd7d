"""The directory in which a run can be looked at, kept and copied without the server.

    config.toml      the run's configuration, ready for `fedlora run`
    run.json         the run as it stands: phase, workers, adapter layout
    events.jsonl     what happened, one event a line, numbered from 1
    metrics.jsonl    one line per completed round: updates, scores, times, bytes, certificate
    rounds/0003/     the adapter that round 3 published, as a PEFT folder
    final/           the last one, or the best round's, as `rounds.final_version` says
    report.html      all of it on one page
    tensorboard/     the numbers of metrics.jsonl for TensorBoard, with server.tensorboard

Nothing here is the state of a run: a server can write all of it again, and every method may be
called again with what it was given before. The folder remembers how far it is: what an event brings
is written before the event's line, so that the last line says what need not be written again.
Files are replaced whole; only events.jsonl and metrics.jsonl grow.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from aggregator_service.reporting.page import report_html
from aggregator_service.reporting.records import from_record, to_record
from fedlora.adapters.peft_files import write_peft_folder
from fedlora.adapters.spec import AdapterSpec
from fedlora.config import load_config, run_entries, toml_text
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, RoundReport, Run, RunEvent
from fedlora.runs.spec import RunSpec

__all__ = ["TENSORBOARD", "RunDirectory", "read_events", "read_rounds", "read_run"]

TENSORBOARD = "tensorboard"
"""the folder of event files, which `aggregator_service.reporting.event_files` writes"""

_WEIGHTS = "adapter_model.safetensors"

# A line of events.jsonl is far shorter; enough of the file's end to hold its last line.
_TAIL_BYTES = 256 * 1024

_UNSETTLED_SECONDS = 60.0
"""what was written so shortly before a machine stopped may not have reached its disk"""


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

    def begin(self, stored: Callable[[int], RunEvent | None]) -> tuple[int, int]:
        """Prepares the files of a run to go on.

        Lines that may not have reached the disk are cut off. The files of another run under the
        same name, or of what this one did before its state was restored from a backup, and ones
        that cannot be read, are begun anew.

        Args:
            stored: the run's event of a number; None if there is none.

        Returns:
            Numbers of the last event that was here, and of the last one that still is; 0 for none.
        """
        events, metrics = self.root / "events.jsonl", self.root / "metrics.jsonl"
        try:
            if _first_record(events) == to_record(stored(1)):
                last = json.loads(_tail(events)[1][-1])
                if last == to_record(stored(last["sequence"])):
                    return self._cut_unsettled(events, metrics)
        except ValueError:
            pass
        for stale in (events, metrics, self.root / "run.json"):
            stale.unlink(missing_ok=True)
        shutil.rmtree(self.root / TENSORBOARD, ignore_errors=True)
        return 0, 0

    def _cut_unsettled(self, events: Path, metrics: Path) -> tuple[int, int]:
        found = json.loads(_tail(events)[1][-1])
        settled = found["time"] - _UNSETTLED_SECONDS
        end, lines = _tail(events, enough=lambda event: event["time"] < settled)
        rounds = []
        while lines and (event := json.loads(lines[-1]))["time"] >= settled:
            end -= len(lines.pop())
            if event["type"] == EventType.ROUND_COMPLETED:
                rounds.append(event["round"])
        if rounds:
            _cut_rounds(metrics, from_round=min(rounds))
        os.truncate(events, end)
        return found["sequence"], json.loads(lines[-1])["sequence"] if lines else 0

    def append_events(self, events: Sequence[RunEvent]) -> None:
        """Adds stored events to events.jsonl; those that are there already are left alone."""
        path = self.root / "events.jsonl"
        last = self.last_sequence
        _append(path, [_line(e) for e in events if e.sequence > last])

    def append_metrics(self, reports: Sequence[RoundReport]) -> None:
        """Puts rounds' lines into metrics.jsonl, in place of earlier ones of those rounds."""
        if not reports:
            return
        path = self.root / "metrics.jsonl"
        new = {report.round: _line(report) for report in reports}
        end, lines = _tail(path, enough=lambda report: report["round"] <= min(new))
        old = {json.loads(line)["round"]: line for line in lines}
        if not old or max(old) < min(new):
            _append(path, [new[r] for r in sorted(new)])
        else:
            merged = {**old, **new}
            start = end - sum(map(len, lines))
            _replace_from(path, start, [merged[r] for r in sorted(merged)])

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

    @property
    def last_sequence(self) -> int:
        """Number of the last event that is here; 0 for none."""
        _, lines = _tail(self.root / "events.jsonl")
        return int(json.loads(lines[-1])["sequence"]) if lines else 0

    @property
    def has_report(self) -> bool:
        """Whether `write_report` has been here."""
        return (self.root / "run.json").exists() and (self.root / "report.html").exists()

    def is_shown(self, run: Run) -> bool:
        """Whether `write_report` has shown the run as it stands."""
        if not self.has_report:
            return False
        shown = json.loads((self.root / "run.json").read_text(encoding="utf-8"))
        return bool(shown == to_record(run))


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


def _line(value: object) -> bytes:
    return json.dumps(to_record(value), allow_nan=False).encode() + b"\n"


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            # Half a line was being written when the machine stopped.
            yield from (line for line in file if line.endswith(b"\n"))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, _lines(path))


def _first_record(path: Path) -> object:
    return next(_records(path), None)


def _tail(
    path: Path, *, enough: Callable[[dict[str, Any]], bool] = lambda _: True
) -> tuple[int, list[bytes]]:
    """Where a file's last whole line ends, and the last lines.

    Args:
        path: the file; there may be none.
        enough: whether a line lies far enough back for the first of those wanted.
    """
    if not path.exists():
        return 0, []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = _TAIL_BYTES
        while True:
            start = max(0, size - length)
            file.seek(start)
            tail = file.read(size - start)
            # What stands before the first line's end may be half a line.
            begin = 0 if start == 0 else tail.find(b"\n") + 1
            end = tail.rfind(b"\n") + 1
            lines = tail[begin:end].splitlines(keepends=True)
            if start == 0 or (lines and enough(json.loads(lines[0]))):
                return start + end, lines
            length *= 4


def _cut_rounds(path: Path, *, from_round: int) -> None:
    end, lines = _tail(path, enough=lambda report: report["round"] < from_round)
    while lines and json.loads(lines[-1])["round"] >= from_round:
        end -= len(lines.pop())
    if path.exists():
        os.truncate(path, end)


def _append(path: Path, lines: Sequence[bytes]) -> None:
    """Adds lines where the last whole one ends; half a line left by a crash is cut off."""
    end, _ = _tail(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(end)
        file.writelines(lines)


def _replace_from(path: Path, start: int, lines: Sequence[bytes]) -> None:
    """Replaces all that follows a byte of a file, which changes at once or not at all."""
    temporary = _beside(path)
    with path.open("rb") as old, temporary.open("wb") as new:
        # Unread: of ten thousand rounds these are tens of megabytes.
        done = 0
        while done < start:
            done += os.sendfile(new.fileno(), old.fileno(), done, start - done)
        new.seek(start)
        new.writelines(lines)
        new.flush()
        os.fsync(new.fileno())
    temporary.replace(path)


def _same_file(there: Path, weights: Path) -> bool:
    if not there.exists():
        return False
    return there.samefile(weights) or filecmp.cmp(there, weights, shallow=False)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        # Else a power cut may leave the new name with nothing behind it.
        os.fsync(file.fileno())
    temporary.replace(path)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
