"""What is said of a row that is wrong: where it is and what was expected, never what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.bad_rows import BAD_ROWS, LABELS, READER, READER_MODULE, SECRET, STREAM, BadRow
from support.packages import install

from client_worker.data.local_data import load_local_data
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.partition import PartitionScheme, PartitionSpec
from fedlora.runs.tasks import DataSlot


@pytest.fixture
def _reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    install(site, {"fedlora.readers": {READER: "quoting:Quoting"}})
    (site / "quoting.py").write_text(READER_MODULE)
    monkeypatch.syspath_prepend(str(site))


@pytest.mark.usefixtures("_reader")
@pytest.mark.parametrize("bad", BAD_ROWS, ids=lambda bad: bad.name)
def test_a_bad_row_is_told_without_what_it_holds(bad: BadRow, tmp_path: Path):
    config = bad.config(tmp_path)
    classifies = bad.task is TaskType.SEQUENCE_CLASSIFICATION
    with pytest.raises(FedLoraError) as caught:
        load_local_data(
            config,
            task=bad.task,
            labels=LABELS if classifies else (),
            slot=None,
            seed=0,
            stream=None if classifies else STREAM,
        )
    error = caught.value
    assert error.reason is Reason.INVALID_DATA
    assert bad.name in error.message
    assert bad.said in error.message
    assert SECRET in bad.text
    assert SECRET not in f"{error} {error.hint} {error!r}"


def test_neither_is_a_group_that_rows_are_shared_out_by(tmp_path: Path):
    bad = next(b for b in BAD_ROWS if b.name == "label-list")
    by_column = PartitionSpec(scheme=PartitionScheme.COLUMN, num_slots=2, column="label")
    with pytest.raises(FedLoraError, match="line 2: column 'label': expected a label") as caught:
        load_local_data(
            bad.config(tmp_path),
            task=bad.task,
            labels=LABELS,
            slot=DataSlot(index=0, partition=by_column),
            seed=0,
        )
    assert SECRET not in str(caught.value)
