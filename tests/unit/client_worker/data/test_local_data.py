from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from support.worker_runs import LABELS, completion_rows, labelled_rows, write_jsonl

from client_worker.data.config import DataConfig
from client_worker.data.local_data import load_local_data
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.partition import PartitionScheme, PartitionSpec
from fedlora.runs.tasks import DataSlot


def loaded(config: DataConfig, slot: DataSlot | None = None, **changes):
    options = {"task": TaskType.SEQUENCE_CLASSIFICATION, "labels": LABELS, "seed": 3, **changes}
    return load_local_data(config, slot=slot, **options)


@pytest.fixture
def numbered(tmp_path):
    """60 training rows and 12 test rows with texts that are all different."""
    rows = [row | {"text": f"text {i}"} for i, row in enumerate(labelled_rows(72, test=12))]
    return DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", rows)), split_column="split")


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "column"])
def test_slots_share_out_the_training_rows_and_all_have_the_whole_test_set(numbered, scheme):
    partition = PartitionSpec(scheme=PartitionScheme(scheme), num_slots=3, column="label", seed=1)
    parts = [loaded(numbered, DataSlot(index=i, partition=partition)) for i in range(3)]
    own = [{e.text for e in (*p.train, *p.held_out)} for p in parts]
    assert set.union(*own) == {f"text {i}" for i in range(60)}
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(own, 2))
    for part in parts:
        assert {e.text for e in part.test} == {f"text {i}" for i in range(60, 72)}
        assert part.held_out
        assert {e.text for e in part.train}.isdisjoint(e.text for e in part.held_out)


def test_without_a_slot_all_training_rows_are_the_workers_own(numbered):
    part = loaded(numbered)
    assert (len(part.train), len(part.held_out), len(part.test)) == (54, 6, 12)


def test_public_rows_are_the_servers_alone_and_all_agree_which_they_are(numbered):
    shared = replace(numbered, public_fraction=0.2)
    partition = PartitionSpec(scheme=PartitionScheme.DIRICHLET, num_slots=2, seed=1)
    parties = [loaded(shared, DataSlot(index=i, partition=partition)) for i in range(2)]
    server = loaded(replace(shared, only_public=True))
    theirs = [{e.text for e in (*p.train, *p.held_out)} for p in (*parties, server)]
    assert [len(texts) for texts in theirs][-1] == 12
    assert set.union(*theirs) == {f"text {i}" for i in range(60)}
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(theirs, 2))
    labels = [e.label for e in (*server.train, *server.held_out)]
    assert {labels.count(i) for i in range(len(LABELS))} == {12 // len(LABELS)}


def test_test_rows_may_come_from_a_file_of_their_own(tmp_path):
    config = DataConfig(
        path=str(write_jsonl(tmp_path / "a.jsonl", labelled_rows(12))),
        test_path=str(write_jsonl(tmp_path / "b.jsonl", labelled_rows(6))),
        held_out_fraction=0.0,
    )
    part = loaded(config)
    assert (len(part.train), len(part.held_out), len(part.test)) == (12, 0, 6)


def test_the_first_so_many_rows_can_be_taken(numbered):
    config = DataConfig(path=numbered.path, split_column="split", max_examples=10)
    part = loaded(config)
    assert {e.text for e in (*part.train, *part.held_out)} == {f"text {i}" for i in range(10)}


def test_a_split_value_that_no_row_has_is_refused_with_how_many_there_are(numbered):
    config = DataConfig(path=numbered.path, split_column="split", test_split="tset")
    with pytest.raises(FedLoraError, match=r"'split' = 'tset', got 72 rows with 2 other values"):
        loaded(config)


def test_a_file_of_test_rows_only_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", labelled_rows(6, test=6))
    with pytest.raises(FedLoraError, match="no training rows"):
        loaded(DataConfig(path=str(path), split_column="split"))


def test_a_dirichlet_split_without_labels_names_the_way_out(tmp_path):
    config = DataConfig(path=str(write_jsonl(tmp_path / "a.jsonl", completion_rows(9))))
    slot = DataSlot(index=0, partition=PartitionSpec(num_slots=3))
    with pytest.raises(FedLoraError, match="no column 'label'") as caught:
        loaded(config, slot, task=TaskType.CAUSAL_LM, labels=())
    assert caught.value.reason is Reason.INVALID_DATA
    assert "iid" in caught.value.hint


def test_a_path_that_is_no_file_and_looks_like_a_hub_id_says_so(tmp_path):
    with pytest.raises(FedLoraError, match=r"'owner/name'.* no file here"):
        loaded(DataConfig(path="owner/name"))
