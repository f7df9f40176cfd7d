"""FederationClient against a real socket: what arrives, what resumes, what an error becomes."""

from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from support.fake_federation import FakeFederation, Fault, run_spec, train_task
from support.tiny_trainer import LAYOUT, adapter, adapter_file

from client_worker.patience import Patience
from client_worker.transport.calls import transfer_seconds
from client_worker.transport.client import FederationClient
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.partition import PartitionSpec
from fedlora.runs.tasks import (
    Acknowledgement,
    Capabilities,
    Directive,
    Evaluation,
    EvaluationScope,
    EvaluationSplit,
    Limits,
    Progress,
    Registration,
    TaskKind,
    UpdateHeader,
)
from fedlora.tensors.safetensors_io import Payload, encode

CHUNK = 128


def joined(client: FederationClient) -> Registration:
    return client.register(
        worker_name="w", run_name="", instance_id="i", capabilities=Capabilities()
    )


def header_of(registration: Registration, payload: Payload) -> UpdateHeader:
    task = train_task()
    return UpdateHeader(
        session_token=registration.session_token,
        run_id=registration.run_id,
        task_id=task.task_id,
        round=task.round,
        base_version=0,
        idempotency_key=f"{task.task_id}.{payload.digest.hex()[:32]}",
        total_bytes=payload.total_bytes,
        manifest=payload.manifest,
        num_examples=64,
        metrics={"train_loss": 0.5},
    )


def insist(attempt):
    return Patience(limit_seconds=10, sleep=lambda _: None).insist("it", attempt)


def test_registration_carries_run_rank_limits_and_slot():
    partition = PartitionSpec(num_slots=3)
    with FakeFederation(partition=partition) as server, FederationClient(server.address) as client:
        registration = joined(client)
    assert registration.run == run_spec()
    assert (registration.rank, registration.limits) == (server.rank, server.limits)
    assert registration.data_slot == server.slot
    (request,) = server.requests("Register")
    assert (request.worker_name, request.instance_id) == ("w", "i")


def test_small_calls_say_what_they_were_told():
    score = Evaluation(
        scope=EvaluationScope.GLOBAL,
        split=EvaluationSplit.TEST,
        num_examples=3,
        metrics={"accuracy": 1.0},
    )
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        token = joined(client).session_token
        assert client.confirm_adapter(token, LAYOUT) == LAYOUT.base_fingerprint
        assert client.await_task(token, max_wait_seconds=0) == train_task()
        server.abandon.add("gone")
        assert client.heartbeat(token, "here") is Directive.CONTINUE
        assert client.heartbeat(token, "gone") is Directive.ABANDON_TASK
        client.report_metrics(token, Progress(task_id="t", completed_steps=1, total_steps=2))
        client.report_evaluation(token, "t", (score,))
        client.leave(token, "enough")
    assert server.layouts == [LAYOUT]
    assert server.scores[0].evaluations[0].metrics["accuracy"] == 1.0
    assert server.requests("ReportMetrics")[0].progress.total_steps == 2
    assert server.requests("Leave")[0].reason == "enough"


def test_a_servers_error_comes_back_with_its_reason_text_and_hint():
    refusal = FedLoraError(Reason.NO_FREE_SLOT, "all 3 are leased", hint="Stop a worker")
    with FakeFederation() as server, FederationClient(server.address) as client:
        server.fail("Register", Fault(refusal))
        with pytest.raises(FedLoraError) as caught:
            joined(client)
    got = caught.value
    assert (got.reason, got.message, got.hint) == (refusal.reason, refusal.message, refusal.hint)


def test_an_absent_server_is_unavailable_and_named():
    with FakeFederation() as server:
        address = server.address
    with FederationClient(address) as client, pytest.raises(FedLoraError, match=address) as caught:
        client.await_task("t", max_wait_seconds=0)
    assert caught.value.reason is Reason.UNAVAILABLE


def test_a_blip_in_an_idempotent_call_is_not_even_noticed():
    with FakeFederation() as server, FederationClient(server.address) as client:
        token = joined(client).session_token
        server.fail("KeepAlive", Fault(), Fault())
        assert client.heartbeat(token, "") is Directive.CONTINUE
    assert server.count("KeepAlive") == 3


def test_no_retry_policy_stands_on_a_call_that_must_not_run_twice(tmp_path: Path):
    # gRPC loses messages of a stream that it retries by itself (measured).
    payload = encode(adapter(seed=1))
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        registration = joined(client)
        token = registration.session_token
        for method in ("PushUpdate", "PullAdapter", "AwaitTask", "Leave", "ReportMetrics"):
            server.fail(method, Fault())
        progress = Progress(task_id="t", completed_steps=1, total_steps=2)
        header = header_of(registration, payload)
        for attempt in (
            lambda: client.push_update(header, payload, max_chunk_bytes=CHUNK),
            lambda: client.pull_adapter(token, 0, folder=tmp_path, expected_bytes=1),
            lambda: client.await_task(token, max_wait_seconds=0),
            lambda: client.leave(token, ""),
            lambda: client.report_metrics(token, progress),
        ):
            with pytest.raises(FedLoraError) as caught:
                attempt()
            assert caught.value.reason is Reason.UNAVAILABLE
    for method in ("PushUpdate", "PullAdapter", "AwaitTask", "Leave", "ReportMetrics"):
        assert server.count(method) == 1, method


# --- uploads -----------------------------------------------------------------------------


def test_an_update_arrives_whole_with_its_header():
    payload = encode(adapter(seed=1))
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        header = header_of(joined(client), payload)
        acknowledgement = client.push_update(header, payload, max_chunk_bytes=CHUNK)
    ((received, data, _),) = server.updates.values()
    assert received == header
    assert data == b"".join(bytes(piece) for _, piece in payload.chunks(0, CHUNK))
    assert acknowledgement == Acknowledgement(
        update_id="update-0", total_bytes=payload.total_bytes, digest=payload.digest
    )
    assert max(length for _, length in server.streams[0].chunks) == CHUNK


TOTAL = encode(adapter(seed=1)).total_bytes


@pytest.mark.parametrize("offset", [1, CHUNK, CHUNK + 1, TOTAL // 2, TOTAL - 1, TOTAL])
@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL])
def test_a_cut_upload_goes_on_where_the_server_holds_it(offset: int, status: grpc.StatusCode):
    payload = encode(adapter(seed=1))
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        header = header_of(joined(client), payload)
        # The same offset twice: the second cut falls on the first chunk sent again.
        server.fail("PushUpdate", Fault(status, after_bytes=offset), Fault(status, offset))
        if offset == TOTAL:
            server.fail("PushUpdate", Fault(status))
        acknowledgement = insist(lambda: client.push_update(header, payload, max_chunk_bytes=CHUNK))
    assert not acknowledgement.replayed
    assert len(server.updates) == 1
    pieces = [chunk for stream in server.streams for chunk in stream.chunks]
    # What the server took in are the payload's bytes, each exactly once.
    assert [at for at, _ in pieces] == [sum(n for _, n in pieces[:i]) for i in range(len(pieces))]
    assert sum(n for _, n in pieces) == payload.total_bytes


def test_a_lost_acknowledgement_is_asked_for_and_nothing_counts_twice():
    payload = encode(adapter(seed=1))
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        header = header_of(joined(client), payload)
        server.fail("PushUpdate", Fault(after_effect=True))
        acknowledgement = insist(lambda: client.push_update(header, payload, max_chunk_bytes=CHUNK))
    assert acknowledgement.replayed
    assert len(server.updates) == 1
    assert server.count("PushUpdate") == 1


def test_other_bytes_under_the_same_task_are_another_upload():
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        registration = joined(client)
        for seed in (1, 2):
            payload = encode(adapter(seed=seed))
            header = header_of(registration, payload)
            client.push_update(header, payload, max_chunk_bytes=CHUNK)
    assert len(server.updates) == 2


def test_a_refused_upload_raises_the_servers_reason():
    payload = encode(adapter(seed=1))
    late = FedLoraError(Reason.WRONG_ROUND, "round 1 is closed")
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        header = header_of(joined(client), payload)
        server.fail("PushUpdate", Fault(late, after_bytes=CHUNK))
        with pytest.raises(FedLoraError, match="round 1 is closed") as caught:
            client.push_update(header, payload, max_chunk_bytes=CHUNK)
    assert caught.value.reason is Reason.WRONG_ROUND


def test_an_acknowledgement_of_other_bytes_is_not_believed():
    payload, other = encode(adapter(seed=1)), encode(adapter(seed=2))
    with FakeFederation([train_task()]) as server, FederationClient(server.address) as client:
        registration = joined(client)
        header = header_of(registration, payload)
        client.push_update(header, payload, max_chunk_bytes=CHUNK)
        confused = replace(header_of(registration, other), idempotency_key=header.idempotency_key)
        with pytest.raises(FedLoraError) as caught:
            client.push_update(confused, other, max_chunk_bytes=CHUNK)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


# --- downloads ---------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path: Path):
    data, manifest = adapter_file(seed=7)
    with (
        FakeFederation(adapters={3: (data, manifest)}) as server,
        FederationClient(server.address) as client,
    ):
        token = joined(client).session_token

        def pull():
            return client.pull_adapter(token, 3, folder=tmp_path, expected_bytes=len(data))

        yield server, data, pull


def test_an_adapter_arrives_under_the_name_of_its_content(published):
    server, data, pull = published
    header, path = pull()
    assert path.read_bytes() == data
    assert path.name == f"{header.digest.hex()}.safetensors"
    assert header.manifest == server.adapters[3][1]


@pytest.mark.parametrize("silent", [False, True], ids=["error", "silent end"])
@pytest.mark.parametrize("offset", [CHUNK, 3 * CHUNK + 5, 600])
def test_a_cut_download_goes_on_from_the_bytes_on_disk(published, offset: int, silent: bool):
    server, data, pull = published
    server.fail("PullAdapter", *[Fault(after_bytes=offset, silent_end=silent)] * 2)
    _, path = insist(pull)
    assert path.read_bytes() == data
    step = offset // CHUNK * CHUNK
    starts = [r.start_offset for r in server.requests("PullAdapter")]
    assert starts == [0, step, 2 * step]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_damage_on_the_way_is_found_and_the_whole_fetched_again(published):
    server, data, pull = published
    server.fail("PullAdapter", Fault(flip_byte=True))
    _, path = insist(pull)
    assert path.read_bytes() == data
    assert [r.start_offset for r in server.requests("PullAdapter")] == [0, 0]


def test_damage_on_disk_between_two_attempts_is_found_too(published, tmp_path: Path):
    server, data, pull = published
    server.fail("PullAdapter", Fault(after_bytes=600))
    with pytest.raises(FedLoraError):
        pull()
    (partial,) = tmp_path.glob("*.part")
    partial.write_bytes(b"\0" * partial.stat().st_size)
    with pytest.raises(FedLoraError) as caught:
        pull()
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert pull()[1].read_bytes() == data


def test_more_on_disk_than_there_is_to_come_is_thrown_away(published, tmp_path: Path):
    server, data, pull = published
    server.fail("PullAdapter", Fault(after_bytes=600))
    with pytest.raises(FedLoraError):
        pull()
    (partial,) = tmp_path.glob("*.part")
    partial.write_bytes(b"\0" * (len(data) + 1))
    assert insist(pull)[1].read_bytes() == data


def test_an_adapter_on_disk_is_not_fetched_again_unless_it_is_damaged(published):
    server, data, pull = published
    first = pull()
    (last := first[1]).chmod(0o600)
    assert pull() == first
    last.write_bytes(data[:-1])
    assert pull()[1].read_bytes() == data
    assert server.count("PullAdapter") == 3


def test_of_a_version_that_is_held_only_the_change_comes(published, tmp_path: Path):
    server = published[0]
    change, manifest = adapter_file(seed=7, parts=(Part.B,))
    server.changes[1, 3] = (change, manifest)
    with FederationClient(server.address) as client:
        token = joined(client).session_token

        def pull(held: int):
            return client.pull_adapter(
                token, 3, folder=tmp_path, expected_bytes=1000, held_version=held
            )

        # Neither takes the other's beginning for its own.
        server.fail("PullAdapter", Fault(after_bytes=300), Fault(after_bytes=300))
        for held in (1, 2):
            with pytest.raises(FedLoraError):
                pull(held)
        header, path = pull(1)
        assert (header.held_version, header.manifest) == (1, manifest)
        assert path.read_bytes() == change
        header, path = pull(2)
        assert header.held_version is None
        assert path.read_bytes() == server.adapters[3][0]


def test_old_adapters_make_room(tmp_path: Path):
    versions = {v: adapter_file(seed=v) for v in range(5)}
    with FakeFederation(adapters=versions) as server, FederationClient(server.address) as client:
        token = joined(client).session_token
        paths = [
            client.pull_adapter(token, v, folder=tmp_path, expected_bytes=1000)[1] for v in versions
        ]
    assert sorted(tmp_path.iterdir()) == sorted(paths[-2:])


def test_a_disk_that_takes_nothing_is_named(published, tmp_path: Path):
    pull = published[2]
    digest_named = pull()[1]
    digest_named.unlink()
    digest_named.mkdir()  # in the way of the final name
    with pytest.raises(FedLoraError, match=tmp_path.name) as caught:
        pull()
    assert caught.value.reason is Reason.OUT_OF_SPACE


def test_the_deadline_of_a_transfer_grows_with_its_size():
    assert transfer_seconds(0, 65536) == 60
    assert transfer_seconds(64 * 1024 * 100, 65536) == 160


def test_the_deadline_of_a_transfer_is_that_of_the_servers_least_rate():
    limits = Limits(max_chunk_bytes=CHUNK, min_bytes_per_second=1.0)
    payload = encode(adapter(seed=1))
    with FakeFederation(limits=limits) as server, FederationClient(server.address) as client:
        registration = joined(client)
        client.push_update(header_of(registration, payload), payload, max_chunk_bytes=CHUNK)
    (stream,) = server.streams
    # gRPC writes longer times in fewer digits, rounded up.
    assert payload.total_bytes < stream.seconds_left < 1.1 * (60 + payload.total_bytes)


def test_a_run_that_is_over_says_stop():
    with FakeFederation() as server, FederationClient(server.address) as client:
        task = client.await_task(joined(client).session_token, max_wait_seconds=0)
    assert (task.kind, task.reason) == (TaskKind.STOP, "over")


def test_a_call_over_a_connection_that_is_closed_is_an_error_with_a_reason():
    with FakeFederation() as server:
        client = FederationClient(server.address)
        client.close()
        with pytest.raises(FedLoraError, match="is closed") as caught:
            client.heartbeat("token", "")
    assert caught.value.reason is Reason.UNAVAILABLE
