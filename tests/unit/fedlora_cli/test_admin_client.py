"""Typed calls against a real aggregator on a real socket."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from contextvars import copy_context

import pytest
from support.federation import config
from support.runs import run_spec
from support.sample_run import sample_round
from typer.testing import CliRunner

from aggregator_service.app import Aggregator
from aggregator_service.rounds.ports import Transaction
from aggregator_service.store.sqlite import DATABASE_NAME, SqliteStateStore
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode, exit_code_of
from fedlora.proto.v1 import run_pb2
from fedlora.rpc.channel import MAX_MESSAGE_BYTES
from fedlora.runs.method import RuleSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.report import EventType
from fedlora.wire.convert import to_message
from fedlora_cli.admin_client import AdminClient
from fedlora_cli.app import app
from fedlora_cli.server_error import ServerError
from fedlora_cli.watcher import Watcher


@contextmanager
def aggregator(tmp_path, run=None):
    """An aggregator in a thread with an event loop of its own; yields its address."""
    ready, done = threading.Event(), asyncio.Event()
    found: dict[str, object] = {}

    async def serve() -> None:
        found["loop"] = asyncio.get_running_loop()
        async with Aggregator(config(tmp_path), run) as served:
            found["address"] = served.address
            ready.set()
            await done.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(60)
        yield found["address"]
    finally:
        found["loop"].call_soon_threadsafe(done.set)
        thread.join()


@pytest.fixture
def address(tmp_path):
    with aggregator(tmp_path) as address:
        yield address


@pytest.fixture
def client(address):
    with AdminClient(address) as client:
        yield client


def test_a_run_is_created_once_listed_and_stopped(client):
    created = client.create_run(run_spec("one"), start=True)
    assert client.create_run(run_spec("one"), start=True).run_id == created.run_id
    assert [r.spec for r in client.list_runs()] == [run_spec("one")]
    assert client.get_run("one").phase is RunPhase.WAITING
    stopped = client.stop_run("one", "enough")
    assert (stopped.phase, stopped.reason) == (RunPhase.STOPPED, "enough")
    assert client.list_rounds("one") == ()


def test_a_run_with_a_sampler_that_nobody_has_is_refused_when_it_is_created(client):
    for options, words in ({}, "Did you mean 'uniform'"), ({"n": 1}, "has no option"):
        name = "power_of_choice" if options else "uniformly"
        sampler = RuleSpec(name=name, options=options)
        with pytest.raises(FedLoraError, match=words):
            client.create_run(run_spec("one", cohort_size=2, sampler=sampler), start=True)
    assert client.list_runs() == ()


def test_plain_text_to_another_machine_is_warned_of_in_one_line(address):
    port = address.rpartition(":")[2]
    # This machine too, by a name that is nobody's loopback.
    for server, insecure in ((f"0.0.0.0:{port}", True), (address, True), (address, False)):
        options = ["--insecure"] if insecure else []
        # In a context of its own: what is shown to a server is a context variable.
        arguments = (*options, "runs", "--server", server, "--json")
        done = copy_context().run(CliRunner().invoke, app, arguments)
        assert (done.exit_code, done.stdout) == (0, "[]\n"), done.output
        if server == address:
            assert done.stderr == ""
        else:
            assert done.stderr == (
                f"warning: plain text to {server}: everybody on the way can read and change it\n"
            )


def test_a_run_of_any_length_is_listed(tmp_path, monkeypatch):
    with aggregator(tmp_path) as address, AdminClient(address) as client:
        client.create_run(run_spec("one"), start=True)
    store = SqliteStateStore(config(tmp_path).state_dir / DATABASE_NAME)
    ((state, clock),) = store.load_runs()
    rounds = tuple(sample_round(n) for n in range(1, 601))
    store.commit(Transaction(state=state, clock=clock, reports=rounds))
    store.close()
    length = sum(to_message(r, run_pb2.RoundReport).ByteSize() for r in rounds)
    assert length > MAX_MESSAGE_BYTES
    monkeypatch.setattr("fedlora.rpc.channel.MAX_ANSWER_BYTES", MAX_MESSAGE_BYTES)
    with aggregator(tmp_path) as address, AdminClient(address) as client:
        assert [r.round for r in client.list_rounds("one")] == [r.round for r in rounds]


def test_a_refusal_keeps_the_servers_reason_and_has_its_own_exit_code(client):
    client.create_run(run_spec("one"), start=True)
    with pytest.raises(ServerError) as caught:
        client.create_run(run_spec("one", rank=2), start=True)
    assert caught.value.reason is Reason.ALREADY_EXISTS
    assert exit_code_of(caught.value, from_server=True) is ExitCode.REFUSED
    with pytest.raises(ServerError) as caught:
        client.get_run("two")
    assert caught.value.reason is Reason.NOT_FOUND
    with pytest.raises(ServerError) as caught:
        list(client.export_adapter("one", None))
    assert caught.value.reason is Reason.NOT_FOUND


def test_events_are_numbered_and_can_be_read_from_anywhere(client):
    client.create_run(run_spec("one"), start=True)
    client.stop_run("one", "enough")
    events = list(client.watch_run("one"))
    assert [e.type for e in events] == [
        EventType.RUN_CREATED,
        EventType.RUN_STARTED,
        EventType.RUN_STOPPED,
    ]
    assert list(client.watch_run("one", first_sequence=3)) == events[2:]
    assert list(client.watch_run("one", follow=False)) == events


def test_a_watcher_hands_over_what_happens_until_the_end(client, address):
    client.create_run(run_spec("one"), start=True)
    watcher = Watcher(address, "one")
    watcher.start()
    seen = []
    while not seen:
        seen += watcher.take(5.0)
    client.stop_run("one", "enough")
    watcher.wait_for_end(30.0)
    seen += watcher.take(0.0)
    watcher.close()
    assert [e.type for e in seen][-1] is EventType.RUN_STOPPED
    assert [e.sequence for e in seen] == [1, 2, 3]


def test_a_watcher_can_be_closed_in_the_middle(client, address):
    client.create_run(run_spec("one"), start=True)
    watcher = Watcher(address, "one")
    watcher.start()
    assert watcher.take(30.0)
    watcher.close()


def test_a_server_that_is_not_there_is_unavailable():
    with AdminClient("127.0.0.1:1") as client, pytest.raises(FedLoraError) as caught:
        client.list_runs()
    assert caught.value.reason is Reason.UNAVAILABLE
    assert exit_code_of(caught.value, from_server=True) is ExitCode.UNREACHABLE
    assert "127.0.0.1:1" in str(caught.value)


def test_commands_that_look_at_runs(client, address):
    client.create_run(run_spec("one"), start=True)
    runner = CliRunner()
    listed = runner.invoke(app, ["runs", "--server", address])
    assert "one" in listed.output
    assert '"run_id"' in runner.invoke(app, ["runs", "--server", address, "--json"]).output
    assert "stopped" in runner.invoke(app, ["stop", "one", "--server", address]).output
    watched = runner.invoke(app, ["watch", "one", "--server", address, "--json"])
    assert [line for line in watched.output.splitlines() if "run_stopped" in line]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--best"], "run 'one' has no best round: rounds.best_by is empty"),
        (["--best", "--version", "1"], "got --version and --best"),
        (["--best", "--worker", "w"], "got --best and --worker"),
        (["--cache-dir", "."], "expected --worker with --cache-dir"),
    ],
)
def test_a_best_version_is_exported_only_where_there_is_one(client, tmp_path, options, text):
    client.create_run(run_spec("one"), start=True)
    out = str(tmp_path / "out")
    command = ["export", "one", "--out", out, "--server", client.address, *options]
    with pytest.raises(FedLoraError, match=text):
        CliRunner().invoke(app, command, catch_exceptions=False)
