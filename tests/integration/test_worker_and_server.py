"""Real workers with a tiny trainer, and the real server: rounds, a killed server, a fence."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

from support.processes import ServerProcess, free_address
from support.runs import run_spec
from support.worker_harness import Worker, worker

from client_worker.patience import Patience
from fedlora.exit_codes import ExitCode
from fedlora.runs.tasks import EvaluationScope


def patient() -> Patience:
    """Pauses between tries are short, and there is no end to them."""
    return Patience(limit_seconds=0, sleep=lambda _: threading.Event().wait(0.05) and None)


def test_a_federation_of_two_workers_runs_to_its_end(tmp_path: Path):
    spec = run_spec(method="flora_na", num_rounds=3)
    with ServerProcess(tmp_path, spec) as server, ExitStack() as stack:
        workers = [
            stack.enter_context(worker(server.address, tmp_path / name, name=name))
            for name in ("w-0", "w-1")
        ]
        assert [w() for w in [w.run_in_thread() for w in workers]] == [ExitCode.OK] * 2
        assert server.terminate() == 0
    for each in workers:
        (trainer,) = each.trainers
        assert [round for round, _ in trainer.trained] == [1, 2, 3]
        scopes = [scope for scope, *_ in trainer.evaluated]
        assert scopes == [EvaluationScope.LOCAL, EvaluationScope.GLOBAL] * 3
    # After each round both hold the same global adapter.
    loads = [w.trainers[0].loads for w in workers]
    assert loads[0] == loads[1]
    assert len(set(loads[0])) == 4


def test_a_server_killed_while_workers_train_costs_neither_work_nor_workers(tmp_path: Path):
    spec = run_spec(num_rounds=2)
    lock, killed = threading.Lock(), []
    with ServerProcess(tmp_path, spec, address=free_address()) as server, ExitStack() as stack:

        def kill_once(step: int) -> None:
            with lock:
                if not killed:
                    killed.append(step)
                    server.kill()
                    thread = threading.Thread(target=server.start)
                    thread.start()
                    stack.callback(thread.join)

        workers: list[Worker] = [
            stack.enter_context(
                worker(
                    server.address,
                    tmp_path / name,
                    name=name,
                    on_step=kill_once,
                    patience=patient(),
                )
            )
            for name in ("w-0", "w-1")
        ]
        assert [w() for w in [w.run_in_thread() for w in workers]] == [ExitCode.OK] * 2
    assert killed
    for each in workers:
        # Nobody trained a round twice, or loaded anew.
        assert [round for round, _ in each.trainers[0].trained] == [1, 2]
        assert len(each.trainers) == 1


def test_a_second_process_of_one_name_takes_over_and_the_first_ends_with_5(tmp_path: Path):
    started = threading.Event()
    hold = threading.Event()

    def until_fenced(step: int) -> None:
        started.set()
        hold.wait(0.01)

    spec = run_spec(num_rounds=1, num_workers=1)
    with (
        ServerProcess(tmp_path, spec, heartbeat_interval_seconds=0.05) as server,
        worker(
            server.address, tmp_path / "1", name="w", on_step=until_fenced, endless=True
        ) as first,
        worker(server.address, tmp_path / "2", name="w") as second,
    ):
        one = first.run_in_thread()
        assert started.wait(30)
        assert second.run_in_thread()() == ExitCode.OK
        assert one() == ExitCode.FENCED
    assert not first.trainers[0].trained
    assert [round for round, _ in second.trainers[0].trained] == [1]
