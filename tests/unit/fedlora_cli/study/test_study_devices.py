"""Cells of a study over several GPUs: each free device takes the next cell, and no other has it."""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.nvml import Gpu, StandInNvml
from support.tiny_run import write_tiny_run

from fedlora.config import CONFIG_VARIABLE
from fedlora.exit_codes import ExitCode
from fedlora.process_limits import available_cores
from fedlora_cli.commands.study import _devices
from fedlora_cli.processes import ManagedProcess
from fedlora_cli.study import runner
from fedlora_cli.study.cells import cells_of
from fedlora_cli.study.design import read_study
from fedlora_cli.study.display import StudyDisplay
from fedlora_cli.study.results import Results

ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"
DEVICES = (f"cuda:{ONE}", f"cuda:{TWO}")

STUDY = """
[study]
name = "tiny"
title = "Where cells run"
config = "tiny.toml"
seeds = [0, 1, 2, 3, 4]
baseline = "fedit"
metrics = ["test_accuracy"]
[variants]
fedit.method.name = "fedit"
"""


class Noted(ManagedProcess):
    """A cell's process, and when it was on which device; it ends at once, with an error."""

    events: list[tuple[str, str]]

    def __init__(self, name: str, module: str, **options: Any) -> None:
        assert module == "fedlora_cli.simulation"
        # These GPUs are not there, so no federation could run on them.
        super().__init__(name, "no_such_module", **options)
        config = tomllib.loads(Path(self.environment[CONFIG_VARIABLE]).read_text())
        (self.device,) = config["workers"]["devices"]
        self.threads = config["workers"]["threads_per_worker"]
        assert options["fork_server"] is None

    def start(self) -> None:
        assert self.threads == int(self.environment["OMP_NUM_THREADS"])
        self.events.append(("start", self.device))
        super().start()

    def close(self) -> None:
        self.events.append(("end", self.device))
        super().close()


@pytest.mark.parametrize(("jobs", "each"), [(0, 1), (4, 2)])
def test_a_device_has_as_many_cells_as_it_was_given_at_any_time(
    jobs: int, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_tiny_run(tmp_path)
    (tmp_path / "study.toml").write_text(STUDY)
    design = read_study(tmp_path / "study.toml")
    cells = cells_of(design)
    monkeypatch.setattr(Noted, "events", [], raising=False)
    monkeypatch.setattr(runner, "ManagedProcess", Noted)
    ran = runner.StudyRunner(
        design.config,
        Results(tmp_path / "results.jsonl"),
        work_dir=tmp_path / "cells",
        jobs=jobs,
        devices=DEVICES,
        display=StudyDisplay(cells, metric="test_accuracy", plain=True),
    )
    assert ran.run(cells) is ExitCode.RUN_FAILED
    assert len(ran.failures) == len(cells)
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for what, device in Noted.events:
        now[device] += 1 if what == "start" else -1
        most |= now
    assert most == dict.fromkeys(DEVICES, each)
    # Nothing waits while a device is free: all of them begin together.
    begun = [device for what, device in Noted.events[: 2 * each] if what == "start"]
    assert begun == list(DEVICES) * each
    threads = max(1, available_cores() // (2 * each))
    configs = [tomllib.loads(f.read_text()) for f in (tmp_path / "cells").rglob("config.toml")]
    assert {c["workers"]["threads_per_worker"] for c in configs} == {threads}


def test_a_study_takes_all_gpus_those_named_or_the_cpu_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml([Gpu(uuid=ONE), Gpu(uuid=TWO)]))
    assert _devices("auto") == _devices("all") == _devices("0,1") == DEVICES
    assert _devices(f"{TWO}") == DEVICES[1:]
    assert _devices("cpu") == ("cpu",)
    monkeypatch.setitem(sys.modules, "pynvml", StandInNvml([]))
    assert _devices("auto") == ("cpu",)
