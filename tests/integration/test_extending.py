"""docs/extending.md, followed to the letter: its package is installed, its configuration run."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.federation import serving
from support.packages import install
from support.planned_worker import Recording
from support.runs import run_spec
from support.worker_federation import federate, run_of
from support.worker_harness import worker
from support.worker_runs import classifier_spec

from aggregator_service.aggregation.registry import create, known_methods
from aggregator_service.rounds.samplers.base import ClientSampler
from aggregator_service.rounds.samplers.registry import create_sampler, known_samplers
from client_worker.data.config import DataConfig
from client_worker.data.examples import LabelledText
from client_worker.data.local_data import LocalData, load_local_data
from fedlora.adapters.spec import TaskType
from fedlora.config import load_config
from fedlora.config.sections import run_sections
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode
from fedlora.plugins import create_plugins, known_plugins
from fedlora.runs.method import RuleSpec
from fedlora.runs.phase import RunPhase
from fedlora.runs.rounds import RoundRules
from fedlora_cli.commands.methods import methods

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text()
RUN = """
[run]
name = "t"
[model]
base = "some/model"
task = "causal_lm"
[adapter]
target_modules = ["q_proj"]
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Sections are read once a process: before and after, they are read again."""
    run_sections.cache_clear()
    yield
    run_sections.cache_clear()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> Path:
    """The page's package, installed."""
    folder = tmp_path / "site"
    install(folder, tomllib.loads(blocks("toml")[0])["project"]["entry-points"])
    names = re.findall(r"^`(\w+\.py)`", PAGE, flags=re.MULTILINE)
    for name, text in zip(names, blocks("python"), strict=True):
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.usefixtures("package")
async def test_the_pages_method_and_plug_in_make_a_federation(
    tmp_path: Path, bert: Path, recording: Recording
):
    file = tmp_path / "run.toml"
    file.write_text(RUN + blocks("toml")[1])
    described = load_config(file, environ={}).need_run()
    assert described.plugins == (RuleSpec(name="ridge", options={"weight": 0.1}),)
    assert described.rounds.sampler == RuleSpec(name="turns", options={"block": 2})

    spec = run_of(classifier_spec(bert), "fedit")
    free = await federate(tmp_path / "free", replace(spec, method=described.method))
    recording.up.clear()
    done = await federate(
        tmp_path / "ridge",
        replace(
            spec,
            method=described.method,
            plugins=(RuleSpec(name="ridge", options={"weight": 100.0}),),
        ),
    )
    _, *updates = recording.up
    name = next(n for n in done.versions[1] if ".lora_B." in n)
    both = torch.stack([u.tensors[name] for u in updates if u.header.round == 1])
    assert torch.equal(done.versions[1][name], both.median(dim=0).values)
    assert float(done.versions[2][name].norm()) < float(free.versions[2][name].norm())


@pytest.mark.usefixtures("package")
async def test_the_pages_sampler_says_whose_turn_it_is(tmp_path: Path, bert: Path):
    spec = run_of(classifier_spec(bert), "fedit", num_rounds=8, local_steps=1)
    turns = RuleSpec(name="turns", options={"block": 2})
    rounds = replace(spec.rounds, cohort_size=1, quorum=1, evaluate=False, sampler=turns)
    await federate(tmp_path, replace(spec, rounds=rounds))
    events = (tmp_path / "runs" / "test" / "events.jsonl").read_text().splitlines()
    begun = [e for e in map(json.loads, events) if e["type"] == "round_started"]
    cohorts = ["".join(e["detail"]["cohort"]) for e in begun]
    assert [sorted(cohorts[n : n + 4]) for n in (0, 4)] == [["w-0", "w-0", "w-1", "w-1"]] * 2


async def test_a_sampler_that_takes_nobody_ends_the_run_and_lets_its_workers_go(
    package: Path, tmp_path: Path
):
    text = (package / "my_turns.py").read_text().replace("[:count]", "[:0]")
    (package / "my_turns.py").write_text(text)
    sys.modules.pop("my_turns", None)
    spec = run_spec(num_workers=3, quorum=2, cohort_size=2, sampler=RuleSpec(name="turns"))
    async with serving(tmp_path, spec) as served:
        with ExitStack() as stack:
            workers = [
                stack.enter_context(worker(served.address, tmp_path / name, name=name))
                for name in ("w-0", "w-1", "w-2")
            ]
            codes = await asyncio.gather(*(asyncio.to_thread(w.runner.run) for w in workers))
        state = served.aggregator.coordinator.run("test").state
    sys.modules.pop("my_turns", None)
    assert state.phase is RunPhase.FAILED
    assert "client sampler turns took nobody; expected 2 different names of" in state.reason
    assert {*codes} == {ExitCode.OK}


@pytest.mark.usefixtures("package")
def test_what_is_installed_is_listed_and_answers_to_its_options(
    capsys: pytest.CaptureFixture[str],
):
    assert "median" in known_methods()
    assert "turns" in known_samplers()
    methods()
    assert "client samplers [sampler]: turns, uniform, by_examples, power_of_choice" in " ".join(
        capsys.readouterr().out.split()
    )
    assert "ridge" in known_plugins()
    with pytest.raises(FedLoraError, match="plug-in ridge has no option 'weigth'") as caught:
        create_plugins([RuleSpec(name="ridge", options={"weigth": 1.0})])
    assert "weight" in caught.value.hint
    with pytest.raises(FedLoraError, match="Did you mean 'median'"):
        create("medain")
    with pytest.raises(FedLoraError, match="client sampler turns has no option 'blok'") as caught:
        sampler("turns", blok=1)
    assert "block" in caught.value.hint
    with pytest.raises(FedLoraError, match="Did you mean 'turns'"):
        sampler("turn")


def sampler(name: str, **options: object) -> ClientSampler:
    rule = RuleSpec(name=name, options=options)
    return create_sampler(RoundRules(cohort_size=2, sampler=rule))


BROKEN = {
    "absent": ("ridge", "no_such_module:Ridge", "ModuleNotFoundError"),
    "raising": ("ridge", "raising_module:Ridge", "RuntimeError: by design"),
    "misnamed": ("rigde", "raising_module:Fine", "calls itself 'ridge'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_one_that_cannot_be_loaded_is_told_to_whoever_asks_for_it_and_to_nobody_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fresh: None,
    case: str,
):
    name, value, problem = BROKEN[case]
    groups = ("fedlora.plugins", "fedlora.methods", "fedlora.samplers")
    install(tmp_path / "site", {group: {name: value} for group in groups})
    fine = "class Fine:\n    name = 'ridge'\n"
    fails = "def __getattr__(name):\n    raise RuntimeError('by design')\n"
    (tmp_path / "site" / "raising_module.py").write_text(fine + fails)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert create("fedit").name == "fedit"
    assert create_plugins([RuleSpec(name="fedprox")])
    assert sampler("uniform").name == "uniform"
    config = tmp_path / "run.toml"
    config.write_text(f"{RUN}[plugins.{name}]\n")
    for ask in (
        lambda: create(name),
        lambda: create_plugins([RuleSpec(name=name)]),
        lambda: sampler(name),
        lambda: load_config(config, environ={}),
    ):
        with pytest.raises(FedLoraError, match=r"of my-package 1\.0") as caught:
            ask()
        assert problem in str(caught.value)
        assert caught.value.reason is Reason.INVALID_CONFIG
    methods()
    told = capsys.readouterr().out
    assert all(f"not usable: {group}" in told for group in groups)


@pytest.mark.usefixtures("fresh")
def test_a_name_of_fedloras_own_stays_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entries = {
        "fedlora.plugins": {"fedprox": "taking_module:Plugin"},
        "fedlora.samplers": {"uniform": "taking_module:Sampler"},
    }
    install(tmp_path / "site", entries)
    (tmp_path / "site" / "taking_module.py").write_text(
        "class Plugin:\n    name = 'fedprox'\n    local = None\n"
        "class Sampler:\n    name = 'uniform'\n    select = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert type(known_plugins()["fedprox"]).__module__ == "fedlora.plugins.fedprox"
    assert type(known_samplers()["uniform"]).__module__.startswith("aggregator_service.")
    assert type(sampler("uniform")).__module__.startswith("aggregator_service.")


def pairs(tmp_path: Path, **changes: object) -> DataConfig:
    rows = [
        {"premise": f"{n} is even.", "hypothesis": f"{n} is a number.", "verdict": "yes"}
        for n in range(0, 20, 2)
    ]
    rows[3] |= changes
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    text = blocks("toml")[2].replace("pairs.jsonl", str(file))
    config = tmp_path / "worker.toml"
    config.write_text(text)
    return load_config(config, services={"data": DataConfig}, environ={}).build("data", DataConfig)


def read(config: DataConfig, task: TaskType = TaskType.SEQUENCE_CLASSIFICATION) -> LocalData:
    labels = ("no", "yes") if task is TaskType.SEQUENCE_CLASSIFICATION else ()
    return load_local_data(config, task=task, labels=labels, slot=None, seed=0)


@pytest.mark.usefixtures("package")
def test_the_pages_reader_makes_a_task_of_rows_of_another_shape(tmp_path: Path):
    found = read(pairs(tmp_path))
    assert LabelledText("4 is even. So: 4 is a number.", 1) in (*found.train, *found.held_out)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"verdict": "maybe"}, TaskType.SEQUENCE_CLASSIFICATION, "line 4: the reader 'pairs' fail"),
        ({}, TaskType.CAUSAL_LM, "line 1: the reader 'pairs' failed"),
    ],
)
def test_what_a_reader_cannot_read_is_said_of_the_row(tmp_path: Path, changes, task, words):
    with pytest.raises(FedLoraError) as caught:
        read(pairs(tmp_path, **changes), task)
    assert words in caught.value.message
    assert caught.value.reason is Reason.INVALID_DATA


@pytest.mark.parametrize(
    ("body", "task", "words"),
    [
        ("PlainText('x')", TaskType.SEQUENCE_CLASSIFICATION, "made PlainText, which is no example"),
        ("LabelledText('x', 0)", TaskType.CAUSAL_LM, "made LabelledText, which is no example"),
        ("LabelledText('x', 2)", TaskType.SEQUENCE_CLASSIFICATION, "expected a number from 0 to 1"),
        ("None", TaskType.CAUSAL_LM, "made NoneType, which is no example for causal_lm"),
    ],
)
def test_what_is_no_example_of_the_task_is_refused(package: Path, tmp_path, body, task, words):
    text = (package / "my_pairs.py").read_text()
    text = text.replace("import LabelledText", "import LabelledText, PlainText")
    text = re.sub(r"        text = .*", f"        return {body}", text, flags=re.DOTALL)
    (package / "my_pairs.py").write_text(text)
    sys.modules.pop("my_pairs", None)
    with pytest.raises(FedLoraError) as caught:
        read(pairs(tmp_path), task)
    assert words in caught.value.message


@pytest.mark.usefixtures("package")
def test_an_unknown_reader_is_answered_with_the_nearest(tmp_path: Path):
    with pytest.raises(FedLoraError) as caught:
        read(replace(pairs(tmp_path), reader="pears"))
    assert "'pears'" in caught.value.message
    assert "Did you mean 'pairs'?" in caught.value.hint
