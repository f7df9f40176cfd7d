from __future__ import annotations

import pytest
from support.worker_runs import LABELS, completion_rows, labelled_rows, write_jsonl

from client_worker.data.config import DataConfig
from client_worker.data.local_data import load_local_data
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.continual import ContinualSpec

BY_LABEL = ContinualSpec(order=("net", "admin", "games"), sizes=(1, 2), rounds_per_experience=1)
BY_COLUMN = ContinualSpec(
    order=("nl", "fr"), sizes=(1, 1), rounds_per_experience=1, column="language"
)


def test_an_example_joins_with_its_label(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", labelled_rows(12, test=3))
    local = load_local_data(
        DataConfig(path=str(path), split_column="split", held_out_fraction=0.3),
        task=TaskType.SEQUENCE_CLASSIFICATION,
        labels=LABELS,
        slot=None,
        seed=0,
        stream=BY_LABEL,
    )
    everything = (*local.train, *local.held_out, *local.test)
    assert len(everything) == 12
    joins = {"net": 1, "admin": 2, "games": 2}
    assert all(e.experience == joins[LABELS[e.label]] for e in everything)


def texts(tmp_path, languages):
    rows = [{**row, "language": x} for row, x in zip(completion_rows(4), languages, strict=True)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    return load_local_data(
        DataConfig(path=str(path), held_out_fraction=0.0),
        task=TaskType.CAUSAL_LM,
        labels=(),
        slot=None,
        seed=0,
        stream=BY_COLUMN,
    )


def test_a_text_joins_with_its_value_of_the_column(tmp_path):
    local = texts(tmp_path, ["fr", "nl", "nl", "fr"])
    assert sorted(e.experience for e in local.train) == [1, 1, 2, 2]


def test_a_value_that_never_joins_is_told_with_its_row(tmp_path):
    with pytest.raises(
        FedLoraError, match=r"'language': .* 2 values .* str of length 2"
    ) as refused:
        texts(tmp_path, ["fr", "nl", "de", "fr"])
    assert refused.value.reason is Reason.INVALID_DATA
    assert "rows.jsonl" in refused.value.message
