"""Event files for TensorBoard: the rounds' numbers as scalars, with the round as their step.

    tensorboard/events.out.tfevents.<n>     one for each process that has written

Written with the package `tensorboard` alone, of the extra `tracking`; it needs neither TensorFlow
nor torch. Its own writer has a thread that does not outlive a full disk, so only its records are
used here. A file only grows, and TensorBoard shows what stands in two of them twice: what is there
is read first, and a number is written once however often its round is told.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import RoundReport

__all__ = ["EventFiles", "require_tensorboard"]

_NAME = "events.out.tfevents"
_VERSION = "brain.Event:2"
"""the first record of every event file"""

_ERRORS = ("relative_error", "factor_mean_error", "lower_bound")


def require_tensorboard() -> ModuleType:
    """The package, or MISSING_EXTRA where it is not installed."""
    try:
        import tensorboard
    except ModuleNotFoundError as error:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            "server.tensorboard needs the package tensorboard, which is not installed",
            hint="Install it with: pip install 'fedlora[tracking]', or leave the key out",
        ) from error
    module: ModuleType = tensorboard
    return module


class EventFiles:
    """The event files of one run.

    Args:
        folder: of this run alone; made once there is something to write.
    """

    def __init__(self, folder: Path) -> None:
        files = [*folder.glob(f"{_NAME}.*")]
        self._written = _scalars_in(folder) if files else set()
        numbers = [int(file.suffix[1:]) for file in files if file.suffix[1:].isdecimal()]
        # Not their count: somebody may have removed an older one.
        self._path = folder / f"{_NAME}.{max(numbers, default=-1) + 1:010}"
        self._end = 0

    def write(self, reports: Sequence[RoundReport], times: Mapping[int, float]) -> None:
        """Adds what is new in rounds that are completed or certified.

        Args:
            reports: of rounds.
            times: by round, when that was, in seconds since the epoch.

        Raises:
            OSError: the disk does not take it; then nothing is written, and it may be told again.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        events, added = [], set[tuple[str, int]]()
        for report in reports:
            new = {
                tag: value
                for tag, value in _scalars_of(report)
                if math.isfinite(value) and (tag, report.round) not in self._written
            }
            if new:
                summary = Summary(
                    value=[Summary.Value(tag=tag, simple_value=value) for tag, value in new.items()]
                )
                events.append(
                    Event(wall_time=times[report.round], step=report.round, summary=summary)
                )
                added |= {(tag, report.round) for tag in new}
        if events and not self._end:
            events.insert(0, Event(wall_time=events[0].wall_time, file_version=_VERSION))
        self._append(events)
        self._written |= added

    def _append(self, events: Sequence[Any]) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        if not events:
            return
        records = io.BytesIO()
        writer = RecordWriter(records)
        for event in events:
            writer.write(event.SerializeToString())
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            # Half a record, left where a disk was full, would hide all that follows it.
            file.truncate(self._end)
            file.write(records.getbuffer())
        self._end += records.tell()


def _scalars_of(report: RoundReport) -> Iterator[tuple[str, float]]:
    for name, value in report.metrics.items():
        yield f"scores/{name}", value
    for phase, seconds in report.phase_seconds.items():
        yield f"seconds/{phase}", seconds
    yield "bytes/up", float(report.bytes_up)
    yield "bytes/down", float(report.bytes_down)
    if report.certificate is not None:
        yield "seconds/certificate", report.certificate.seconds
        for name in _ERRORS:
            yield f"certificate/{name}", getattr(report.certificate.overall, name)


def _scalars_in(folder: Path) -> set[tuple[str, int]]:
    """Tag and step of every scalar that is there; half a record at a file's end is none."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    # 0: every scalar, where it would keep a sample of them.
    found = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    tags = found.Tags()[SCALARS]
    return {(tag, scalar.step) for tag in tags for scalar in found.Scalars(tag)}
