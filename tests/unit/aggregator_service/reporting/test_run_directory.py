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
    for sequences in ((1, 2), (3,), (1, 2, 3, 4), (4,), ()):
        directory.append_events([event(s) for s in sequences])
    assert read_events(directory.root) == tuple(event(s) for s in (1, 2, 3, 4))
    assert directory.last_sequence == 4


def test_half_a_line_of_a_crash_is_cut_off(directory):
    directory.append_events([event(1), event(2)])
    file = directory.root / "events.jsonl"
    whole = file.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        file.write_bytes(whole[:end])
        assert read_events(directory.root) == (event(1),)
        directory.append_events([event(2)])
        assert file.read_bytes() == whole


def test_a_line_longer_than_what_is_read_of_a_file_at_first_is_found(directory):
    long = replace(event(2), detail={"text": "x" * 2_000_000})
    directory.append_events([event(1), long])
    assert directory.last_sequence == 2
    directory.append_events([event(3)])
    assert read_events(directory.root) == (event(1), long, event(3))


def test_another_runs_files_are_begun_anew(directory):
    directory.append_events([event(1), event(2)])
    directory.append_metrics([sample_round(1)])
    assert directory.begin(lambda number: event(number, time=900.0)) == (0, 0)
    assert (read_events(directory.root), read_rounds(directory.root)) == ((), ())


@pytest.mark.parametrize("damage", [b"\x00" * 50 + b"\n", b"{]\n", b"\xff\n"])
def test_files_that_a_power_cut_has_spoiled_are_begun_anew(directory, damage):
    directory.append_events([event(1), event(2)])
    with (directory.root / "events.jsonl").open("ab") as file:
        file.write(damage)
    assert directory.begin(event) == (0, 0)
    assert directory.last_sequence == 0


def test_what_was_written_within_a_minute_of_the_end_is_cut_off(directory):
    def completed(sequence: int, round: int, time: float) -> RunEvent:
        made = event(sequence, time=time)
        return replace(made, type=EventType.ROUND_COMPLETED, round=round, detail={"x": "y" * 999})

    assert directory.begin(event) == (0, 0)
    settled = [event(1), *(completed(s, round=s, time=200.0 * s) for s in range(2, 900))]
    late_certificate = replace(event(903, time=200_000.0), round=5)
    recent = [completed(s, round=s, time=200_000.0) for s in range(900, 903)]
    directory.append_events([*settled, *recent, late_certificate])
    directory.append_metrics([sample_round(r) for r in range(2, 903)])
    stored = {e.sequence: e for e in [*settled, *recent, late_certificate]}
    assert directory.begin(stored.get) == (903, 899)
    assert read_events(directory.root) == tuple(settled)
    assert [r.round for r in read_rounds(directory.root)] == list(range(2, 900))


def test_a_round_has_one_line_whatever_the_order_and_the_repeats(directory):
    bare = [sample_round(max(1, r), certified=False) for r in range(20)]
    whole = [sample_round(max(1, r)) for r in range(20)]
    for reports in ([bare[3]], [bare[1]], [whole[1], bare[2]], [], [bare[4]], [whole[4]]):
        directory.append_metrics(reports)
    assert read_rounds(directory.root) == (whole[1], bare[2], bare[3], whole[4])
    directory.append_metrics(bare[5:])
    directory.append_metrics([whole[19]])
    directory.append_metrics([whole[2], whole[5]])
    expected = (whole[1], whole[2], bare[3], whole[4], whole[5], *bare[6:19], whole[19])
    assert read_rounds(directory.root) == expected


def test_half_a_line_of_metrics_is_cut_off_too(directory):
    directory.append_metrics([sample_round(1), sample_round(2)])
    file = directory.root / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[:-9])
    directory.append_metrics([sample_round(3)])
    assert read_rounds(directory.root) == (sample_round(1), sample_round(3))


def test_a_figure_that_is_not_there_is_null_and_reads_back_as_nan(directory):
    report = sample_round(1)
    certificate = report.certificate
    overall = replace(certificate.overall, gap_closed=math.nan, measurements={"sweeps": math.inf})
    directory.append_metrics([replace(report, certificate=replace(certificate, overall=overall))])
    line = (directory.root / "metrics.jsonl").read_text()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    json.loads(line, parse_constant=refuse)
    (read,) = read_rounds(directory.root)
    assert math.isnan(read.certificate.overall.gap_closed)
    assert math.isnan(read.certificate.overall.measurements["sweeps"])
    assert read.certificate.modules == certificate.modules


def test_the_report_and_the_run_are_written_beside_it(directory):
    assert not directory.has_report
    assert not directory.is_shown(sample_run())
    directory.write_report(sample_run(), [sample_round(1)])
    assert directory.is_shown(sample_run())
    assert not directory.is_shown(sample_run(reason="another"))
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
