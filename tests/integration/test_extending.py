"""docs/extending.md, followed to the letter: its package is installed, its configuration run."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.planned_worker import Recording
from support.worker_federation import federate, run_of
from support.worker_runs import classifier_spec

from aggregator_service.aggregation.registry import create, known_methods
from client_worker.data.config import DataConfig
from client_worker.data.examples import LabelledText
from client_worker.data.local_data import LocalData, load_local_data
from fedlora.adapters.spec import TaskType
from fedlora.config import load_config
from fedlora.config.sections import run_sections
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import create_plugins, known_plugins
from fedlora.runs.method import RuleSpec
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


def install(folder: Path, entries: dict[str, dict[str, str]]) -> None:
    """A distribution as an installer leaves it: what is in a wheel, in a folder on the path."""
    info = folder / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    lines = [
        line
        for group, rows in entries.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in rows.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


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
def test_what_is_installed_is_listed_and_answers_to_its_options():
    assert "median" in known_methods()
    assert "ridge" in known_plugins()
    with pytest.raises(FedLoraError, match="plug-in ridge has no option 'weigth'") as caught:
        create_plugins([RuleSpec(name="ridge", options={"weigth": 1.0})])
    assert "weight" in caught.value.hint
    with pytest.raises(FedLoraError, match="Did you mean 'median'"):
        create("medain")


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
    install(tmp_path / "site", {"fedlora.plugins": {name: value}, "fedlora.methods": {name: value}})
    fine = "class Fine:\n    name = 'ridge'\n"
    fails = "def __getattr__(name):\n    raise RuntimeError('by design')\n"
    (tmp_path / "site" / "raising_module.py").write_text(fine + fails)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert create("fedit").name == "fedit"
    assert create_plugins([RuleSpec(name="fedprox")])
    config = tmp_path / "run.toml"
    config.write_text(f"{RUN}[plugins.{name}]\n")
    for ask in (
        lambda: create(name),
        lambda: create_plugins([RuleSpec(name=name)]),
        lambda: load_config(config, environ={}),
    ):
        with pytest.raises(FedLoraError, match=r"of my-package 1\.0") as caught:
            ask()
        assert problem in str(caught.value)
        assert caught.value.reason is Reason.INVALID_CONFIG
    methods()
    assert "not usable: fedlora.plugins" in capsys.readouterr().out


@pytest.mark.usefixtures("fresh")
def test_a_name_of_fedloras_own_stays_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install(tmp_path / "site", {"fedlora.plugins": {"fedprox": "raising_module:Fine"}})
    (tmp_path / "site" / "raising_module.py").write_text("class Fine:\n    name = 'fedprox'\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert type(known_plugins()["fedprox"]).__module__ == "fedlora.plugins.fedprox"


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
