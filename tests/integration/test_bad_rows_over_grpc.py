"""Workers whose data has a bad row: who learns of it, and that nobody learns what is in the row."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from support.bad_rows import BAD_ROWS, LABELS, READER, READER_MODULE, SECRET, STREAM
from support.federation import Served, serving
from support.logs import logged
from support.packages import install
from support.worker_runs import causal_spec, classifier_spec, worker_run

from client_worker.app import run_worker
from client_worker.config import WorkerConfig
from fedlora.adapters.spec import TaskType
from fedlora.exit_codes import ExitCode
from fedlora.proto.v1 import admin_pb2
from fedlora.runs.spec import RunSpec

TOLD = "INVALID_DATA: the worker's own log says what is wrong"


@dataclass
class Seen:
    """All that is to be seen of workers that could not read their data."""

    log: str = ""
    """of server and workers, in JSON, from the level debug on"""
    events: str = ""
    """what watchers were sent"""
    kept: bytes = b""
    """every file of the server: its database, and the runs' directories"""
    codes: dict[str, int] = field(default_factory=dict)
    """exit codes by worker"""

    def lines(self, event: str) -> list[dict[str, str]]:
        """The log's lines of an event."""
        return [x for x in map(json.loads, self.log.splitlines()) if x["event"] == event]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Seen:
    folder = tmp_path_factory.mktemp("bad-rows")
    install(folder / "site", {"fedlora.readers": {READER: "quoting:Quoting"}})
    (folder / "site" / "quoting.py").write_text(READER_MODULE)
    labelled = worker_run(classifier_spec(bert, labels=LABELS))
    texts = replace(worker_run(causal_spec(bert)), continual=STREAM)
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch, logged() as log, torch.random.fork_rng(devices=[]):
        # Workers of this process choose the CPU for all of it.
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        patch.syspath_prepend(str(folder / "site"))
        for spec in (labelled, texts):
            asyncio.run(_try_all(folder, spec, seen))
        seen.log = log.getvalue()
    return seen


async def _try_all(folder: Path, spec: RunSpec, seen: Seen) -> None:
    """Every bad row of the run's task, each in a worker of its own."""
    rows, own = folder / "rows", folder / spec.adapter.task_type.value
    rows.mkdir(exist_ok=True)
    settings = {"export_dir": own / "runs", "state_dir": own / "state"}
    async with asyncio.timeout(150), serving(own, spec, **settings) as served:
        for bad in BAD_ROWS:
            if bad.task is spec.adapter.task_type:
                config = WorkerConfig(
                    server=served.address, name=bad.name, device="cpu", data=bad.config(rows)
                )
                seen.codes[bad.name] = await asyncio.to_thread(run_worker, config)
        seen.events += await _watched(served, spec.name)
        await served.aggregator.wait_until_settled()
    seen.kept += b"".join(f.read_bytes() for f in own.rglob("*") if f.is_file())


async def _watched(served: Served, run: str) -> str:
    await served.admin.StopRun(admin_pb2.StopRunRequest(run=run), timeout=30)
    watching = served.admin.WatchRun(admin_pb2.WatchRunRequest(run=run), timeout=30)
    return "".join([str(event) async for event in watching])


def test_the_owner_is_told_which_row_it_is_and_what_was_expected(seen: Seen):
    assert seen.codes == {bad.name: ExitCode.USAGE for bad in BAD_ROWS}
    gone = {line["worker"]: line["reason"] for line in seen.lines("gone")}
    assert gone.keys() == seen.codes.keys()
    for bad in BAD_ROWS:
        assert bad.name in gone[bad.name]
        assert bad.said in gone[bad.name]


def test_the_server_and_who_looks_at_the_run_are_told_the_reasons_code(seen: Seen):
    left = {line["worker"]: line["reason"] for line in seen.lines("worker_left")}
    assert left == {bad.name: TOLD for bad in BAD_ROWS}
    # What the next test looks through is what a reason of leaving gets into.
    assert seen.events.count("INVALID_DATA: ") == len(BAD_ROWS)
    assert seen.kept.count(b"INVALID_DATA: ") >= len(BAD_ROWS)


@pytest.mark.parametrize("where", ["log", "events", "kept"])
def test_nothing_of_a_row_is_in_a_log_or_an_event_or_a_file_of_the_server(seen: Seen, where: str):
    shown = getattr(seen, where)
    text = shown.decode(errors="replace") if isinstance(shown, bytes) else shown
    assert len(text) > 1000
    assert SECRET not in text.lower()


def test_no_file_of_a_worker_is_named_to_the_server(seen: Seen):
    for text in (seen.events, seen.kept.decode(errors="replace"), str(seen.lines("worker_left"))):
        assert [bad.name for bad in BAD_ROWS if f"{bad.name}{bad.suffix}" in text] == []


def test_the_secret_was_in_every_row():
    assert all(SECRET in bad.text for bad in BAD_ROWS)
    assert {bad.task for bad in BAD_ROWS} == {*TaskType}
