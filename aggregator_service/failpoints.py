"""Places at which a test can kill the server, make an operation fail, or hold it still.

    FEDLORA_FAILPOINTS="renamed=kill@3"              dies by SIGKILL at the third passage
    FEDLORA_FAILPOINTS="blob_unsynced=ENOSPC@2x5"    passages 2 to 6 raise OSError(ENOSPC)
    FEDLORA_FAILPOINTS="mid_aggregation=pause"       stands still for ever at the first passage

The points stand in the code that runs in production, in the order in which an update passes them,
and are armed by the environment of the process alone. While none is armed, `reach` is an empty
function.
"""

from __future__ import annotations

import enum
import errno
import itertools
import os
import re
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["ACTIONS", "ARMED", "Armed", "Failpoint", "parse", "reach"]

VARIABLE = "FEDLORA_FAILPOINTS"


class Failpoint(enum.StrEnum):
    """The places."""

    HEADER_READ = "header_read"
    """an upload's header is read, nothing of it written"""
    MID_CHUNK = "mid_chunk"
    """half of a chunk is written"""
    BLOB_UNSYNCED = "blob_unsynced"
    """all bytes are written, none is durable"""
    BLOB_SYNCED = "blob_synced"
    """the bytes are durable, under no name"""
    BEFORE_RENAME = "before_rename"
    """the next thing is the name"""
    RENAMED = "renamed"
    """the blob has its name, not durably"""
    FOLDER_SYNCED = "folder_synced"
    """blob and name are durable"""
    BEFORE_COMMIT = "before_commit"
    """a transaction is written, not committed"""
    COMMITTED = "committed"
    """a transaction is durable"""
    BEFORE_ACKNOWLEDGEMENT = "before_acknowledgement"
    """an update counts, and nobody has been told"""
    ROUND_CLOSED = "round_closed"
    """the round has its quorum, durably; aggregation has not begun"""
    MID_AGGREGATION = "mid_aggregation"
    """some modules are combined"""
    AGGREGATE_STORED = "aggregate_stored"
    """the next version is a blob that no transaction names"""
    ROUND_COMMITTED = "round_committed"
    """the round's report is durable"""
    UPDATES_DROPPED = "updates_dropped"
    """nobody needs an old round's updates any more, durably; their files are there"""


ACTIONS = ("kill", "pause", "ENOSPC", "EIO")


@dataclass(frozen=True, slots=True, kw_only=True)
class Armed:
    """What happens at a point, and at which of its passages, from 1."""

    action: str
    first: int = 1
    count: int = 1


_RULE = re.compile(r"(?P<point>[a-z_]+)=(?P<action>\w+)(@(?P<first>\d+))?(x(?P<count>\d+))?")


def parse(text: str) -> dict[Failpoint, Armed]:
    """The points that a comma-separated list arms.

    Raises:
        ValueError: for a rule that is none, naming it. No FedLoraError: nobody but a test of ours
            writes such a list.
    """
    rules: dict[Failpoint, Armed] = {}
    for rule in filter(None, text.split(",")):
        match = _RULE.fullmatch(rule.strip())
        if match is None or match["action"] not in ACTIONS:
            raise ValueError(
                f"{VARIABLE}: expected point=action@first x count with an action of "
                f"{', '.join(ACTIONS)}, got {rule!r}"
            )
        rules[Failpoint(match["point"])] = Armed(
            action=match["action"],
            first=int(match["first"] or 1),
            count=int(match["count"] or 1),
        )
    return rules


def _nothing(point: Failpoint) -> None:
    """What a point is while nobody has armed one."""


def _armed(rules: Mapping[Failpoint, Armed]) -> Callable[[Failpoint], None]:
    passages = {point: itertools.count(1) for point in rules}

    def reach(point: Failpoint) -> None:
        rule = rules.get(point)
        if rule is None:
            return
        # next() of a count is one step of the interpreter: threads get different numbers.
        passage = next(passages[point])
        if not rule.first <= passage < rule.first + rule.count:
            return
        if rule.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if rule.action in ("kill", "pause"):
            threading.Event().wait()
        code = getattr(errno, rule.action)
        raise OSError(code, f"{os.strerror(code)} (failpoint {point.value})")

    return reach


ARMED: Mapping[Failpoint, Armed] = parse(os.environ.get(VARIABLE, ""))
"""by point; empty in production"""

reach = _armed(ARMED) if ARMED else _nothing
"""Passes a point."""
