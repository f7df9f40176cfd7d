"""What a worker sends in a run with a codec, and what it remembers of what it left out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from support.fake_federation import INITIALIZE, FakeFederation, Fault, run_spec, train_task
from support.tiny_trainer import LAYOUT, STEPS, TinyOutcome, TinyTrainer, adapter, adapter_file
from support.worker_harness import worker
from torch import Tensor

from client_worker.training.loop import TaskAbandoned
from client_worker.training.round_work import RoundWork
from fedlora.adapters.names import Part, parse_key
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import CodedUpdate, coded_manifest, coded_update, create_codec
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.runs.method import RuleSpec
from fedlora.runs.plan import RoundPlan
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Registration, Task
from fedlora.tensors.manifest import DataType
from fedlora.tensors.safetensors_io import decode, encode

VERSIONS = {v: adapter_file(seed=10 + v) for v in range(4)}
MANIFEST = LAYOUT.manifest(4, DataType.F32)
SPEC = CodecSpec(name=CodecName.TOP_K)
ROUNDS = (1, 2, 3)


def run_with(codec: CodecSpec | None = SPEC) -> RunSpec:
    return replace(run_spec(), codec=codec)


def planned(*rounds: int, plan: RoundPlan | None = None) -> list[Task]:
    """A round begins from the version before it, whatever the worker has sent."""
    return [replace(train_task(r, version=r - 1), plan=plan or RoundPlan()) for r in rounds]


def given(round: int) -> dict[str, Tensor]:
    return decode(VERSIONS[round - 1][0], MANIFEST)


def trained(round: int) -> dict[str, Tensor]:
    """What `TinyTrainer` makes of it, with the seed of the round's task."""
    noise = adapter(seed=100 + round)
    return {name: value + noise[name] for name, value in given(round).items()}


def expected(round: int, residual: Mapping[str, Tensor], spec: CodecSpec = SPEC) -> CodedUpdate:
    return coded_update(create_codec(spec), trained(round), given(round), residual)


def expected_in_turn(*rounds: int) -> list[bytes]:
    """What a worker sends that goes through these rounds undisturbed."""
    residual: Mapping[str, Tensor] = {}
    made = []
    for round in rounds:
        update = expected(round, residual)
        residual = update.residual
        made.append(bytes_of(update.tensors))
    return made


def bytes_of(tensors: Mapping[str, Tensor]) -> bytes:
    return b"".join(data for _, data in encode(tensors).chunks(0, 2**20))


def sent(server: FakeFederation) -> list[bytes]:
    return [data for _, data, _ in server.updates.values()]


@pytest.mark.parametrize("name", list(CodecName))
def test_an_update_is_the_change_in_the_runs_codec(tmp_path: Path, name: CodecName):
    spec = CodecSpec(name=name)
    with (
        FakeFederation([INITIALIZE, *planned(1)], run=run_with(spec), adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() == 0
    first, update = server.updates.values()
    # The first adapter is a change of nothing, and goes as it is.
    assert first[0].manifest == MANIFEST
    assert update[0].manifest == coded_manifest(MANIFEST, create_codec(spec))
    assert update[1] == bytes_of(expected(1, {}, spec).tensors)
    assert len(update[1]) < len(first[1])


def test_what_an_update_leaves_out_goes_into_the_next(tmp_path: Path):
    with (
        FakeFederation(planned(*ROUNDS), run=run_with(), adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() == 0
    assert sent(server) == expected_in_turn(*ROUNDS)


@pytest.mark.parametrize(
    ("codec", "plan"),
    [
        (SPEC, RoundPlan(keeps_basis=False)),
        (replace(SPEC, error_feedback=False), RoundPlan()),
    ],
    ids=["the components are others", "the run wants no feedback"],
)
def test_nothing_goes_into_the_next_where(tmp_path: Path, codec: CodecSpec, plan: RoundPlan):
    cache = tmp_path / "cache"
    with (
        FakeFederation(planned(1, 2, plan=plan), run=run_with(codec), adapters=VERSIONS) as server,
        worker(server.address, tmp_path, cache_dir=cache) as w,
    ):
        assert w.runner.run() == 0
    assert sent(server) == [bytes_of(expected(r, {}).tensors) for r in (1, 2)]
    assert not list(cache.rglob("*.private"))


def test_parts_that_a_round_does_not_send_keep_what_they_are_owed(tmp_path: Path):
    only_a, only_b = RoundPlan(trained=(Part.A,)), RoundPlan(trained=(Part.B,))
    tasks = [*planned(1), *planned(2, plan=only_b), *planned(3, plan=only_a)]
    with (
        FakeFederation(tasks, run=run_with(), adapters=VERSIONS) as server,
        worker(server.address, tmp_path) as w,
    ):
        assert w.runner.run() == 0
    owed = expected(1, {}).residual
    a = {n: t for n, t in trained(3).items() if parse_key(n).part is Part.A}
    third = coded_update(create_codec(SPEC), a, given(3), owed)
    assert sent(server)[2] == bytes_of(third.tensors)


class Idle(TinyTrainer):
    """Has no example of what its second round trains, as in a run whose classes join later."""

    def train(self, work: RoundWork, extras: Mapping[str, Tensor]) -> TinyOutcome:
        if work.round == 2:
            return TinyOutcome(num_examples=0, metrics={})
        return super().train(work, extras)


def test_an_update_without_examples_leaves_what_is_owed_to_the_next_one_that_counts(tmp_path: Path):
    with (
        FakeFederation(planned(*ROUNDS), run=run_with(), adapters=VERSIONS) as server,
        worker(server.address, tmp_path, create=Idle) as w,
    ):
        assert w.runner.run() == 0
    first = expected(1, {})
    nothing = coded_update(create_codec(SPEC), given(2), given(2), {})
    assert sent(server) == [
        bytes_of(update.tensors) for update in (first, nothing, expected(3, first.residual))
    ]


# --- crashes ---------------------------------------------------------------------------------


def test_a_restart_between_rounds_neither_loses_nor_doubles_what_is_owed(tmp_path: Path):
    cache = tmp_path / "cache"
    seen = []
    for round in ROUNDS:
        with (
            FakeFederation(planned(round), run=run_with(), adapters=VERSIONS) as server,
            worker(server.address, tmp_path, cache_dir=cache) as w,
        ):
            assert w.runner.run() == 0
        seen += sent(server)
    assert seen == expected_in_turn(*ROUNDS)


def test_a_task_trained_again_after_a_restart_sends_the_same_bytes(tmp_path: Path):
    cache = tmp_path / "cache"
    with FakeFederation(planned(1, 2), run=run_with(), adapters=VERSIONS) as server:

        def break_in_round_2(step: int) -> None:
            if server.plan[0].round == 2 and step == STEPS:
                server.fail("GetUploadStatus", Fault(FedLoraError(Reason.STATE_CORRUPT, "broken")))

        with worker(server.address, tmp_path, cache_dir=cache, on_step=break_in_round_2) as w:
            assert w.runner.run() is ExitCode.REFUSED
        # The residual is there, the update that went with it is not.
        shutil.rmtree(cache / "workers" / "w" / "outbox")
        with worker(server.address, tmp_path, cache_dir=cache) as again:
            assert again.runner.run() == 0
        assert again.trainers[0].trained == [(2, 102)]
    assert sent(server) == expected_in_turn(1, 2)


def test_an_update_kept_over_a_restart_is_sent_as_it_was(tmp_path: Path):
    cache = tmp_path / "cache"
    with FakeFederation(planned(1, 2), run=run_with(), adapters=VERSIONS) as server:
        server.fail("GetUploadStatus", Fault(FedLoraError(Reason.STATE_CORRUPT, "broken")))
        with worker(server.address, tmp_path, cache_dir=cache) as w:
            assert w.runner.run() is ExitCode.REFUSED
        with worker(server.address, tmp_path, cache_dir=cache) as again:
            assert again.runner.run() == 0
    assert [round for round, _ in again.trainers[0].trained] == [2]
    assert sent(server) == expected_in_turn(1, 2)


class OwnToo(TinyTrainer):
    """Trains an adapter of its own after each round; its second task ends meanwhile."""

    def __init__(self, registration: Registration, server: FakeFederation) -> None:
        super().__init__(registration)
        self._server = server

    def train_own(self, work: RoundWork, own: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        if work.round == 2:
            self._server.drop_task()
            raise TaskAbandoned
        return self.adapter()


def test_a_task_that_ends_after_its_update_was_made_leaves_what_was_owed_before_it(tmp_path: Path):
    run = replace(run_with(), plugins=(RuleSpec(name="ditto"),))
    with (
        FakeFederation(planned(*ROUNDS), run=run, adapters=VERSIONS) as server,
        worker(server.address, tmp_path, create=lambda r: OwnToo(r, server)) as w,
    ):
        assert w.runner.run() == 0
    owed = expected(1, {}).residual
    assert sent(server) == [
        bytes_of(update.tensors) for update in (expected(1, {}), expected(3, owed))
    ]


# --- refusals --------------------------------------------------------------------------------


class Overtaking(FakeFederation):
    """Round 2 closes while its update is on its way; before that the worker may be cut off."""

    cuts_off_first = False

    def GetUploadStatus(self, request, context):
        if self.plan[0].round == 2 and self.cuts_off_first:
            self.cuts_off_first = False
            self.fail("GetUploadStatus", Fault(FedLoraError(Reason.STATE_CORRUPT, "broken")))
        elif self.plan[0].round == 2:
            self.plan.popleft()
            self.fail("GetUploadStatus", Fault(FedLoraError(Reason.WRONG_ROUND, "closed")))
        return super().GetUploadStatus(request, context)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_update_refused_as_too_late_leaves_what_was_owed_before_it(
    tmp_path: Path, restarted: bool
):
    cache = tmp_path / "cache"
    rounds: list[int] = []
    with Overtaking(planned(*ROUNDS), run=run_with(), adapters=VERSIONS) as server:
        server.cuts_off_first = restarted
        # A new process finds the update of round 2, and only then is told that it is late.
        for code in [ExitCode.REFUSED, ExitCode.OK] if restarted else [ExitCode.OK]:
            with worker(server.address, tmp_path, cache_dir=cache) as w:
                assert w.runner.run() is code
            rounds += [round for round, _ in w.trainers[0].trained]
    assert rounds == [1, 2, 3]
    owed = expected(1, {}).residual
    assert sent(server) == [
        bytes_of(update.tensors) for update in (expected(1, {}), expected(3, owed))
    ]


@pytest.mark.parametrize("read", [False, True])
def test_of_an_update_cut_off_from_its_answer_the_worker_asks_whether_it_was_read(
    tmp_path: Path, read: bool
):
    cache = tmp_path / "cache"
    with FakeFederation(planned(*ROUNDS), run=run_with(), adapters=VERSIONS) as server:

        def cut_off_round_2(step: int) -> None:
            if server.plan[0].round == 2 and step == STEPS:
                broken = FedLoraError(Reason.STATE_CORRUPT, "broken")
                method = "PushUpdate" if read else "GetUploadStatus"
                server.fail(method, Fault(broken, after_effect=read))

        with worker(server.address, tmp_path, cache_dir=cache, on_step=cut_off_round_2) as w:
            assert w.runner.run() is ExitCode.REFUSED
        # Its round has gone by when it is back.
        while server.plan[0].round == 2:
            server.plan.popleft()
        with worker(server.address, tmp_path, cache_dir=cache) as again:
            assert again.runner.run() == 0
    assert sent(server)[-1] == expected_in_turn(*(ROUNDS if read else (1, 3)))[-1]
    assert not (cache / "workers" / "w" / "outbox").exists()


class Jumping(TinyTrainer):
    """Comes out further from what it was given than f16 can say."""

    def trained_values(self) -> dict[str, Tensor]:
        return {name: tensor + 1e5 for name, tensor in super().trained_values().items()}


def test_a_change_that_the_codec_cannot_write_ends_the_worker_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = run_with(CodecSpec(name=CodecName.F16))
    with (
        FakeFederation(planned(1), run=run, adapters=VERSIONS) as server,
        worker(server.address, tmp_path, create=Jumping) as w,
    ):
        assert w.runner.run() is not ExitCode.OK
    assert not server.updates
    logged = capsys.readouterr()
    assert "expected a change that f16 can write" in logged.out + logged.err
    assert server.requests("Leave")[0].reason.startswith("NOT_FINITE: ")
