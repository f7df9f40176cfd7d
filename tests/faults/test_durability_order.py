"""An acknowledgement comes last: blob synced, renamed, folder synced, state committed, answered.

Seen twice: inside one process, which runs everywhere and lets mutants show that a missing step is
noticed, and as the system calls of a real server, where strace is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.federation import connected, random_adapter, serving
from support.processes import ServerProcess
from support.runs import run_spec

from aggregator_service.store import files, upload_writer
from aggregator_service.store.sqlite import DATABASE_NAME, SqliteStateStore
from aggregator_service.uploads import Uploads

STEPS = ("sync the blob", "rename it", "sync its folder", "commit the state", "acknowledge")


@dataclass(frozen=True)
class Call:
    """One of STEPS, from its beginning to its end on one axis."""

    step: str
    begin: int
    end: int


def in_order(calls: list[Call]) -> bool:
    """Whether every step is there and ended before some call of the next one began."""
    ended = -1
    for step in STEPS:
        following = [c for c in calls if c.step == step and c.begin > ended]
        if not following:
            return False
        ended = min(c.end for c in following)
    return [c.step for c in calls].count("acknowledge") == 1


# --- inside one process ---------------------------------------------------------------------


@contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[list[Call]]:
    """The steps of every upload meanwhile, in the order in which they were done."""
    calls: list[Call] = []
    sync, replace = os.fsync, os.replace
    commit, receive = SqliteStateStore.commit, Uploads.receive

    def note(step: str) -> None:
        calls.append(Call(step, len(calls), len(calls)))

    def noted_sync(handle: int) -> None:
        sync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        note(STEPS[0] if path.suffix == ".part" else STEPS[2])

    def noted_replace(source: Path, target: Path) -> None:
        replace(source, target)
        note(STEPS[1])

    def noted_commit(store: SqliteStateStore, transaction) -> None:
        commit(store, transaction)
        if transaction.updates:
            note(STEPS[3])

    async def noted_receive(uploads: Uploads, *arguments):
        answer = await receive(uploads, *arguments)
        note(STEPS[4])
        return answer

    patch.setattr(os, "fsync", noted_sync)
    patch.setattr(os, "replace", noted_replace)
    patch.setattr(SqliteStateStore, "commit", noted_commit)
    patch.setattr(Uploads, "receive", noted_receive)
    yield calls


def without_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(upload_writer, "sync_file", lambda _: None)


def without_folder_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(files, "sync_folder", lambda _: None)


def synced_after_the_rename(patch: pytest.MonkeyPatch) -> None:
    def late(path: Path, target: Path) -> None:
        files.rename_durably(path, target)
        handle = os.open(target, os.O_RDWR)
        os.fsync(handle)
        os.close(handle)

    without_sync(patch)
    patch.setattr(upload_writer, "rename_durably", late)


def acknowledged_before_the_commit(patch: pytest.MonkeyPatch) -> None:
    commit, late = SqliteStateStore.commit, list[Callable[[], None]]()

    def lazy(store: SqliteStateStore, transaction) -> None:
        for earlier in late:
            earlier()
        late[:] = [lambda: commit(store, transaction)]

    patch.setattr(SqliteStateStore, "commit", lazy)


@pytest.mark.parametrize(
    "mutant",
    [
        None,
        without_sync,
        without_folder_sync,
        synced_after_the_rename,
        acknowledged_before_the_commit,
    ],
)
async def test_an_update_is_durable_before_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., None] | None
):
    async with serving(tmp_path, run_spec()) as served:
        workers = [await served.worker(f"w-{i}") for i in range(2)]
        task = await workers[0].task()
        with monkeypatch.context() as patch, recorded(patch) as calls:
            if mutant is not None:
                mutant(patch)
            await workers[0].push(task, random_adapter(4, seed=0), num_examples=0)
        assert in_order(calls) == (mutant is None), calls


# --- system calls of a real server ----------------------------------------------------------

_LINE = re.compile(r"^(?P<thread>\d+) +(?P<rest>.*)$")
_RESUMED = re.compile(r"^<\.\.\. (?P<name>\w+) resumed>")


def calls_of(trace: str, state: Path, acknowledged: str) -> list[Call]:
    """The steps in strace's output; a call that others interrupt stands on two of its lines."""
    begun: dict[str, tuple[int, str]] = {}
    calls = []
    for number, line in enumerate(trace.splitlines()):
        match = _LINE.match(line)
        if match is None:
            continue
        thread, rest = match["thread"], match["rest"]
        begin, text = number, rest
        if rest.endswith("<unfinished ...>"):
            begun[thread] = (number, rest)
            continue
        if _RESUMED.match(rest):
            begin, start = begun.pop(thread)
            text = start + rest
        if step := step_of(text, state, acknowledged):
            calls.append(Call(step, begin, number))
    return calls


def step_of(text: str, state: Path, acknowledged: str) -> str | None:
    name = text.partition("(")[0]
    if name in ("fsync", "fdatasync"):
        if ".part>" in text:
            return STEPS[0]
        if f"<{state / DATABASE_NAME}-wal>" in text:
            return STEPS[3]
        return STEPS[2] if re.search(rf"<{state}/blobs/[0-9a-f]{{2}}>", text) else None
    if name.startswith("rename") and f"{state}/blobs/" in text:
        return STEPS[1]
    if name == "sendmsg" and acknowledged in text:
        return STEPS[4]
    return None


@contextmanager
def traced(process: int, output: Path) -> Iterator[None]:
    """strace looks at all threads of a process meanwhile."""
    names = "fsync,fdatasync,rename,renameat,renameat2,sendmsg"
    options = ["-f", "-y", "-s", "4096", "-e", f"trace={names}", "-o", str(output)]
    command = ["strace", *options, "-p", str(process)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            strace.wait(10)
            pytest.skip(f"strace may not look at other processes here: {said}")
        yield
        strace.send_signal(signal.SIGINT)
        strace.wait(30)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
async def test_the_system_calls_of_a_server_are_in_that_order(tmp_path: Path):
    trace, state = tmp_path / "trace", tmp_path / "server" / "state"
    with ServerProcess(tmp_path / "server", run_spec()) as server:
        async with connected(server.address) as served:
            workers = [await served.worker(f"w-{i}") for i in range(2)]
            task = await workers[0].task()
            assert server.process is not None
            with traced(server.process.pid, trace):
                answer = await workers[0].push(task, random_adapter(4, seed=0), num_examples=0)
    text = trace.read_text()
    assert in_order(calls_of(text, state, answer.update_id)), text
