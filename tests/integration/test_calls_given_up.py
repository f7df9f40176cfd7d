"""Operators that go away while the server works for them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.federation import serving
from support.runs import run_spec
from support.waiting import until

from aggregator_service.store.sqlite import SqliteStateStore
from fedlora.proto.v1 import admin_pb2, run_pb2
from fedlora.wire.convert import to_message


async def test_a_run_whose_creation_was_given_up_can_be_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    reached, free, commit = threading.Event(), threading.Event(), SqliteStateStore.commit

    def slow_commit(store: SqliteStateStore, transaction: Any) -> None:
        reached.set()
        free.wait(60)
        commit(store, transaction)

    request = admin_pb2.CreateRunRequest(spec=to_message(run_spec(), run_pb2.RunSpec))
    async with serving(tmp_path, None) as served:
        monkeypatch.setattr(SqliteStateStore, "commit", slow_commit)
        first = served.admin.CreateRun(request, timeout=60)
        try:
            await until(reached.is_set)
            first.cancel()
            # Heard of by the server, behind the first.
            await served.admin.ListRuns(admin_pb2.ListRunsRequest(), timeout=60)
        finally:
            free.set()
        assert await first.code() is grpc.StatusCode.CANCELLED
        created = await served.admin.CreateRun(request, timeout=60)
        assert created.run.spec.name == run_spec().name
