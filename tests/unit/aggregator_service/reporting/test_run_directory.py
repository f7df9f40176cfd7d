"""A run directory can be written again at any time, and read without the server."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.sample_run import sample_round, sample_run, sample_spec

from aggregator_service.reporting import RunDirectory, read_rounds, read_run
from aggregator_service.reporting.run_directory import read_events
from fedlora.config import load_config
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import EventType, RunEvent


@pytest.fixture
def directory(tmp_path):
    return RunDirectory(tmp_path / "runs" / "sample")


def event(sequence: int, time: float = 100.0) -> RunEvent:
    return RunEvent(
        sequence=sequence,
        type=EventType.RUN_CREATED if sequence == 1 else EventType.WORKER_READY,
        time=time + sequence,
        worker="wörker\u2028",
        detail={"n": sequence, "list": ["a"]},
    )


def test_the_configuration_describes_the_run(directory):
    directory.write_config(sample_spec())
    assert load_config(directory.root / "config.toml", environ={}).run == sample_spec()


def test_a_fuller_configuration_of_the_same_run_is_kept(directory):
    directory.write_config(sample_spec())
    file = directory.root / "config.toml"
    fuller = file.read_text() + '\n[data]\npath = "x.jsonl"\n'
    file.write_text(fuller)
    directory.write_config(sample_spec())
    assert file.read_text() == fuller
    directory.write_config(sample_spec(seed=8))
    assert load_config(file, environ={}).run == sample_spec(seed=8)


def test_events_that_are_there_are_not_added_again(directory):
    for sequence in (1, 2, 3, 1, 2, 3, 4, 4):
        directory.append_event(event(sequence))
    assert read_events(directory.root) == tuple(event(s) for s in (1, 2, 3, 4))


def test_half_a_line_of_a_crash_is_cut_off(directory):
    directory.append_event(event(1))
    directory.append_event(event(2))
    file = directory.root / "events.jsonl"
    whole = file.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        file.write_bytes(whole[:end])
        assert read_events(directory.root) == (event(1),)
        directory.append_event(event(2))
        assert file.read_bytes() == whole


def test_the_first_event_of_another_run_begins_anew(directory):
    directory.append_event(event(1))
    directory.append_event(event(2))
    directory.append_metrics(sample_round(1))
    directory.append_event(event(1, time=900.0))
    assert read_events(directory.root) == (event(1, time=900.0),)
    assert read_rounds(directory.root) == ()


def test_a_round_has_one_line_whatever_the_order_and_the_repeats(directory):
    for report in (sample_round(2), sample_round(1, certified=False), sample_round(1)):
        directory.append_metrics(report)
    assert read_rounds(directory.root) == (sample_round(1), sample_round(2))


def test_a_figure_that_is_not_there_is_null_and_reads_back_as_nan(directory):
    report = sample_round(1)
    certificate = report.certificate
    overall = replace(certificate.overall, gap_closed=math.nan, measurements={"sweeps": math.inf})
    directory.append_metrics(replace(report, certificate=replace(certificate, overall=overall)))
    line = (directory.root / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(line, parse_constant=refuse)
    (read,) = read_rounds(directory.root)
    assert math.isnan(read.certificate.overall.gap_closed)
    assert math.isnan(read.certificate.overall.measurements["sweeps"])
    assert read.certificate.modules == certificate.modules


def test_the_report_and_the_run_are_written_beside_it(directory):
    directory.write_report(sample_run(), [sample_round(1)])
    assert read_run(directory.root) == sample_run()
    assert "<svg" in (directory.root / "report.html").read_text()
    assert not [p for p in directory.root.iterdir() if p.name.startswith(".")]


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(FedLoraError) as caught:
        read_run(tmp_path)
    assert caught.value.reason is Reason.NOT_FOUND
    assert str(tmp_path) in str(caught.value)


def test_an_adapter_is_exported_once_and_replaced_when_it_differs(directory, tmp_path):
    adapter = replace(sample_spec().adapter, modules_to_save=())
    key = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"
    files = []
    for i in range(2):
        files.append(tmp_path / f"{i}.safetensors")
        save_file(
            {key: torch.full((8, 4), float(i)), key.replace("_A", "_B"): torch.zeros(4, 8)},
            files[i],
            metadata={"format": "pt"},
        )
    folder = directory.root / "rounds" / "0001"
    directory.export_adapter("rounds/0001", files[0], adapter, 8)
    written = (folder / "adapter_config.json").stat().st_mtime_ns
    directory.export_adapter("rounds/0001", files[0], adapter, 8)
    assert (folder / "adapter_config.json").stat().st_mtime_ns == written
    directory.export_adapter("rounds/0001", files[1], adapter, 8)
    assert load_file(folder / "adapter_model.safetensors")[key].unique().tolist() == [1.0]
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 8
