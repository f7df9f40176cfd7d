"""Beats over one stream: what opens it, what ends it, and what is left of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from support.fake_federation import WAIT_SECONDS, FakeFederation, Fault

from client_worker.transport.client import FederationClient
from client_worker.transport.keep_alive import KeepAlive
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import federation_pb2_grpc
from fedlora.rpc.channel import client_options
from fedlora.runs.tasks import Capabilities, Directive


@contextmanager
def joined(server: FakeFederation) -> Iterator[tuple[FederationClient, str]]:
    """A client and its session."""
    with FederationClient(server.address) as client:
        registration = client.register(
            worker_name="w", run_name="", instance_id="i", capabilities=Capabilities()
        )
        yield client, registration.session_token


@contextmanager
def silent_address() -> Iterator[str]:
    """Where connections are accepted by the kernel, and nobody reads or answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def channel_to(address: str) -> Iterator[federation_pb2_grpc.FederationServiceStub]:
    with grpc.insecure_channel(address, options=client_options()) as channel:
        yield federation_pb2_grpc.FederationServiceStub(channel)


def test_beats_share_one_stream():
    with FakeFederation() as server, joined(server) as (client, token):
        for task in ("", "t", "u"):
            assert client.heartbeat(token, task) is Directive.CONTINUE
        assert [r.task_id for r in server.requests("KeepAlive")] == ["", "t", "u"]
        assert server.num_keep_alives == 1
        assert server.count("Heartbeat") == 0


def test_a_beat_that_need_not_be_answered_is_not_and_the_next_gets_its_own_answer():
    with FakeFederation() as server, joined(server) as (client, token):
        server.abandon.add("gone")
        assert client.heartbeat(token, "", answered=False) is Directive.CONTINUE  # it opened it
        assert client.heartbeat(token, "", answered=False) is None
        assert client.heartbeat(token, "", answered=False) is None
        assert client.heartbeat(token, "gone") is Directive.ABANDON_TASK
        assert client.heartbeat(token, "") is Directive.CONTINUE
        beats = server.requests("KeepAlive")
        assert [b.unanswered for b in beats] == [False, True, True, False, False]
        assert {b.session_token for b in beats} == {token}
        assert server.num_keep_alives == 1


def test_what_is_wrong_with_a_beat_that_is_not_answered_shows_with_the_next():
    refusal = FedLoraError(Reason.SESSION_FENCED, "a newer process")
    with FakeFederation() as server, joined(server) as (client, token):
        client.heartbeat(token, "")
        server.fail("KeepAlive", Fault(refusal))
        assert client.heartbeat(token, "", answered=False) is None
        with pytest.raises(FedLoraError, match="a newer process"):
            client.heartbeat(token, "t")


def test_a_stream_that_has_ended_takes_no_beat_unanswered():
    with FakeFederation() as server, joined(server) as (client, token):

        def beat_until_the_end_is_known() -> None:
            while client.heartbeat(token, "", answered=False) is None:
                pass

        client.heartbeat(token, "")
        server.stop()
        with pytest.raises(FedLoraError, match=server.address):
            beat_until_the_end_is_known()
        server.start()
        assert client.heartbeat(token, "", answered=False) is Directive.CONTINUE


def test_the_beat_after_a_restart_of_the_server_opens_another_stream():
    with FakeFederation() as server, joined(server) as (client, token):
        client.heartbeat(token, "")
        server.stop()
        server.start()
        assert client.heartbeat(token, "") is Directive.CONTINUE
        assert server.num_keep_alives == 2


def test_an_error_is_the_servers_and_the_next_beat_is_on_another_stream():
    refusal = FedLoraError(Reason.UNKNOWN_SESSION, "who?", hint="Register again")
    with FakeFederation() as server, joined(server) as (client, token):
        client.heartbeat(token, "")
        server.fail("KeepAlive", Fault(refusal))
        with pytest.raises(FedLoraError) as caught:
            client.heartbeat(token, "")
        got = caught.value
        assert (got.reason, got.message, got.hint) == (refusal.reason, "who?", "Register again")
        client.heartbeat(token, "")
        assert (server.count("KeepAlive"), server.num_keep_alives) == (3, 2)


def test_a_stream_that_the_server_has_ended_after_a_silence_is_opened_anew():
    silence = FedLoraError(Reason.DEADLINE_EXCEEDED, "a message was expected")
    with FakeFederation() as server, joined(server) as (client, token):
        client.heartbeat(token, "")
        server.fail("KeepAlive", Fault(silence))
        assert client.heartbeat(token, "") is Directive.CONTINUE
        assert server.num_keep_alives == 2


def test_a_server_that_stays_away_is_unavailable_and_is_found_again():
    with FakeFederation() as server, joined(server) as (client, token):
        client.heartbeat(token, "")
        server.stop()
        with pytest.raises(FedLoraError, match=server.address) as caught:
            client.heartbeat(token, "")
        assert caught.value.reason is Reason.UNAVAILABLE
        server.start()
        assert client.heartbeat(token, "") is Directive.CONTINUE


def test_a_server_that_hangs_is_noticed_in_time():
    with silent_address() as address, channel_to(address) as stub:
        beats = KeepAlive(address)
        with pytest.raises(FedLoraError, match=f"{address} has not answered") as caught:
            beats.beat(stub.KeepAlive, pb.HeartbeatRequest(), seconds=0.3)
        assert caught.value.reason is Reason.DEADLINE_EXCEEDED
        beats.close()


def test_another_connection_takes_the_beats_with_it():
    beat = pb.HeartbeatRequest()
    with (
        FakeFederation() as server,
        joined(server) as (_, token),
        channel_to(server.address) as old,
        channel_to(server.address) as new,
    ):
        beats, beat.session_token = KeepAlive(server.address), token
        for stub in (old, old, new, new):
            beats.beat(stub.KeepAlive, beat, seconds=WAIT_SECONDS)
        beats.close()
        assert (server.count("KeepAlive"), server.num_keep_alives) == (4, 2)


def test_closing_ends_a_beat_under_way_and_leaves_no_thread():
    before, failed = set(threading.enumerate()), []
    with silent_address() as address:
        client = FederationClient(address)

        def beat() -> None:
            with pytest.raises(FedLoraError) as caught:
                client.heartbeat("token", "")
            failed.append(caught.value.reason)

        beating = threading.Thread(target=beat)
        beating.start()
        # One that waits for the answer's time to run out, and gRPC's for the next request.
        while len(set(threading.enumerate()) - before) < 3:
            beating.join(0.01)
        client.close()
        beating.join(WAIT_SECONDS)
        assert failed == [Reason.UNAVAILABLE]
        for left in set(threading.enumerate()) - before:
            left.join(WAIT_SECONDS)
        assert set(threading.enumerate()) <= before


def test_closing_after_beats_leaves_no_thread_and_ends_the_stream_in_good_order():
    with FakeFederation() as server:
        before = set(threading.enumerate())
        with joined(server) as (client, token):
            client.heartbeat(token, "")
        server.wait_until(lambda: server.num_finished == 1)
        ours = {t for t in set(threading.enumerate()) - before if "ThreadPool" not in t.name}
        for left in ours:
            left.join(WAIT_SECONDS)
            assert not left.is_alive(), left.name
