import os
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from support.fake_federation import evaluate_task, train_task
from support.tiny_trainer import LAYOUT, adapter

from client_worker.parts import personal_manifest, pick, private_manifest
from client_worker.private_parts import PrivateParts
from fedlora.adapters.axis import Axis
from fedlora.adapters.names import Part
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdapterKind
from fedlora.runs.plan import RoundPlan
from fedlora.tensors.manifest import DataType

PLAN = RoundPlan(trained=(Part.A,), private=(Part.B,))
MANIFEST = private_manifest(LAYOUT.manifest(4, DataType.F32), PLAN)
WIDER = private_manifest(LAYOUT.manifest(5, DataType.F32), PLAN)


def values(seed: int) -> dict[str, torch.Tensor]:
    return pick(adapter(seed=seed), MANIFEST)


def begun(parts: PrivateParts, round: int, run_id: str = "run-1") -> float | None:
    """What the training of a round begins from: the sum of its one tensor."""
    found = parts.before(run_id, train_task(round), MANIFEST)
    return None if found is None else sum_of(found.tensors)


def sum_of(tensors) -> float:
    (tensor,) = tensors.values()
    return float(tensor.sum())


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["disk", "memory", "restarts"])
def opened(request, tmp_path: Path):
    """Gives the parts of a worker; with "restarts" those of a new process every time."""
    in_memory = PrivateParts(None if request.param == "memory" else tmp_path / "p")
    return lambda: PrivateParts(tmp_path / "p") if request.param == "restarts" else in_memory


def test_a_round_begins_from_what_the_one_before_has_made(opened):
    assert begun(opened(), 1) is None
    for round in (1, 2, 3):
        opened().keep("run-1", train_task(round), values(round))
        assert begun(opened(), round + 1) == sum_of(values(round))


def test_a_task_given_again_begins_where_it_began_the_first_time(opened):
    opened().keep("run-1", train_task(1), values(1))
    # However often a restart makes it train: what the round before has made is not lost.
    for attempt in (2, 3, 4):
        opened().keep("run-1", train_task(2), values(attempt))
        assert begun(opened(), 2) == sum_of(values(1))
        assert begun(opened(), 3) == sum_of(values(attempt))


def test_the_first_task_given_again_begins_from_the_global_values(opened):
    opened().keep("run-1", train_task(1), values(1))
    assert begun(opened(), 1) is None


def test_an_evaluation_takes_what_the_round_has_made(opened):
    opened().keep("run-1", train_task(1), values(1))
    opened().keep("run-1", train_task(2), values(2))
    found = opened().before("run-1", evaluate_task(2), MANIFEST)
    assert found is not None
    assert (found.round, sum_of(found.tensors)) == (2, sum_of(values(2)))


def test_what_a_task_has_made_can_be_taken_back(opened):
    opened().keep("run-1", train_task(1), values(1))
    opened().keep("run-1", train_task(2), values(2))
    opened().forget("run-1", train_task(2).task_id, MANIFEST)
    assert begun(opened(), 3) == sum_of(values(1))
    opened().forget("run-1", train_task(1).task_id, MANIFEST)
    assert begun(opened(), 3) is None


def test_a_worker_that_missed_rounds_goes_on_with_what_it_had(opened):
    opened().keep("run-1", train_task(1), values(1))
    assert begun(opened(), 9) == sum_of(values(1))


def test_two_files_are_kept_and_no_run_takes_those_of_another(tmp_path: Path):
    for round in range(1, 6):
        PrivateParts(tmp_path).keep("run-1", train_task(round), values(round))
    assert len(files(tmp_path)) == 2
    assert begun(PrivateParts(tmp_path), 9, run_id="run-2") is None
    PrivateParts(tmp_path).keep("run-2", train_task(1), values(7))
    assert begun(PrivateParts(tmp_path), 9) == sum_of(values(5))


@pytest.mark.parametrize("offset", [0, 20, -1])
def test_a_flipped_bit_is_found_and_the_earlier_part_taken(tmp_path: Path, offset: int):
    for round in (1, 2):
        PrivateParts(tmp_path).keep("run-1", train_task(round), values(round))
    newest = files(tmp_path)[-1]
    data = bytearray(newest.read_bytes())
    data[offset] ^= 1
    newest.write_bytes(data)
    with capture_logs() as lines:
        assert begun(PrivateParts(tmp_path), 3) == sum_of(values(1))
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("private_part_damaged", "warning")
    ]


def test_damage_to_all_there_is_leaves_the_global_values_and_the_next_round_heals_it(
    tmp_path: Path,
):
    PrivateParts(tmp_path).keep("run-1", train_task(1), values(1))
    (only,) = files(tmp_path)
    only.write_bytes(only.read_bytes()[:-1])
    parts = PrivateParts(tmp_path)
    assert begun(parts, 2) is None
    parts.keep("run-1", train_task(2), values(2))
    assert begun(PrivateParts(tmp_path), 3) == sum_of(values(2))
    assert len(files(tmp_path)) == 1


def test_a_part_of_another_run_or_rank_is_foreign(tmp_path: Path):
    PrivateParts(tmp_path).keep("run-1", train_task(1), values(1))
    PrivateParts(tmp_path).keep("run-2", train_task(1), values(2))
    one, two = files(tmp_path)
    one.replace(two.parent / one.name)
    with capture_logs() as lines:
        for run_id in ("run-1", "run-2"):
            PrivateParts(tmp_path).before(run_id, train_task(2), MANIFEST)
        assert PrivateParts(tmp_path).before("run-2", train_task(2), WIDER) is None
    assert {line["event"] for line in lines} == {"private_part_foreign"}


def test_a_worker_that_was_given_another_rank_says_so_and_begins_anew(opened):
    opened().keep("run-1", train_task(1), values(1))
    with capture_logs() as lines:
        assert opened().before("run-1", train_task(2), WIDER) is None
    assert [line["event"] for line in lines] == ["private_part_foreign"]


def test_a_process_that_dies_while_it_writes_has_changed_nothing(tmp_path: Path, monkeypatch):
    PrivateParts(tmp_path).keep("run-1", train_task(1), values(1))

    def die(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        PrivateParts(tmp_path).keep("run-1", train_task(2), values(2))
    monkeypatch.undo()
    assert begun(PrivateParts(tmp_path), 2) == sum_of(values(1))
    PrivateParts(tmp_path).keep("run-1", train_task(2), values(2))
    assert begun(PrivateParts(tmp_path), 3) == sum_of(values(2))


def test_a_file_is_durable_before_it_has_its_name_and_its_name_before_keep_returns(
    tmp_path: Path, monkeypatch
):
    synced = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    PrivateParts(tmp_path / "p").keep("run-1", train_task(1), values(1))
    run_folder = files(tmp_path)[0].parent.name
    # The folders' names, the file's content, and last its name.
    assert synced == [tmp_path.name, "p", "writing.tmp", run_folder]


def test_a_disk_that_refuses_costs_only_the_restart(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    parts = PrivateParts(tmp_path / "file" / "p")
    with capture_logs() as lines:
        parts.keep("run-1", train_task(1), values(1))
    assert [line["event"] for line in lines] == ["private_part_not_kept"]
    assert begun(parts, 2) == sum_of(values(1))


def test_without_a_folder_a_worker_says_once_that_a_restart_loses_the_part(tmp_path: Path):
    with capture_logs() as lines:
        parts = PrivateParts(None)
        for round in (1, 2, 3):
            begun(parts, round)
            parts.keep("run-1", train_task(round), values(round))
    assert [line["event"] for line in lines] == ["private_parts_in_memory"]


@pytest.mark.parametrize("axis", list(Axis))
def test_personal_magnitudes_are_kept_like_any_other_part(tmp_path: Path, axis: Axis):
    shape = AdapterShape(layout=LAYOUT, kind=AdapterKind.LORA, rank=4, dtype=DataType.BF16)
    plan = RoundPlan(personal_stage=True, settings={"axis": float(axis.code)})
    manifest = personal_manifest(shape, plan)
    assert [t.shape for t in manifest.tensors] == [(40,) if axis is Axis.ROW else (4,)]
    made = {t.name: torch.rand(t.shape) for t in manifest.tensors}
    PrivateParts(tmp_path).keep("run-1", evaluate_task(1), made)
    found = PrivateParts(tmp_path).before("run-1", evaluate_task(2), manifest)
    assert found is not None
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in made.items())
    assert PrivateParts(tmp_path).before("run-1", evaluate_task(1), manifest) is None
