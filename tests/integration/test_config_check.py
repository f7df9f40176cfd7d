"""`fedlora config check` refuses what a server would, in a server's words."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from support.federation import serving
from support.tiny_run import write_tiny_run
from typer.testing import CliRunner, Result

from fedlora.errors import FedLoraError
from fedlora_cli.app import app
from fedlora_cli.configuration import load

CONTINUAL = """
[continual]
order = ["a", "b"]
sizes = [1, 1]
rounds_per_experience = 1
"""

REFUSED = {
    "scaffold + continual": ("[plugins.scaffold]\n" + CONTINUAL, (), "plug-in scaffold"),
    "hira in flora": (
        "",
        ("method.name=flora", "adapter.kind=hira"),
        "adapters of kind lora, got hira",
    ),
    "no personal score": ("", ("method.name=flora", "rounds.best_by=personal_accuracy"), "ditto"),
    "quorum": ("", ("method.name=fedlora_optimizer", "rounds.evaluate=false"), "rounds.evaluate"),
    "codec": ("[codec]\nname = 'int8'\n", ("method.name=lora_a2",), "cannot take updates in a"),
    "sampler": ("[sampler]\nname = 'uniformly'\n", ("rounds.cohort_size=2",), "Did you mean"),
    "labels": ("", ('model.labels=["a"]',), "two different labels"),
    "packing": ("", ("training.packing=true",), "training.packing is for causal_lm"),
    "late": ("", ("method.name=rolora", "rounds.late_updates=carry"), "late_updates"),
}


def flags(overrides: tuple[str, ...]) -> list[str]:
    return [word for pair in overrides for word in ("--set", pair)]


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def told(error: FedLoraError) -> tuple[str, str, str]:
    """What `main` prints."""
    return error.reason.value, error.message, error.hint


def words(result: Result) -> tuple[str, str, str]:
    assert isinstance(result.exception, FedLoraError), result.output
    return told(result.exception)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_run(tmp_path)


@pytest.mark.parametrize("case", REFUSED)
async def test_what_create_is_refused_config_check_refuses_in_the_same_words(case, tiny, tmp_path):
    sections, overrides, named = REFUSED[case]
    tiny.write_text(tiny.read_text() + sections)
    checked = invoke("config", "check", str(tiny), *flags(overrides))
    async with serving(tmp_path, None) as served:
        command = ("create", str(tiny), "--server", served.address, *flags(overrides))
        created = await asyncio.to_thread(invoke, *command)
        assert served.aggregator.coordinator.runs() == ()
    # The server of `fedlora run` is given its run when it starts.
    spec = load(tiny, overrides).need_run()
    with pytest.raises(FedLoraError) as started:
        async with serving(tmp_path / "run", spec):
            pass
    assert words(checked) == words(created) == told(started.value)
    assert named in " ".join(words(checked))


WEIGHTED = ("adapter.kind=hira", "method.name=flora_na", "method.hadamard=weighted")


async def test_what_depends_on_the_server_is_told_and_not_refused(tiny, tmp_path):
    checked = invoke("config", "check", str(tiny), *flags(WEIGHTED))
    assert checked.exit_code == 0, checked.exception
    assert "aggregator without server.base_weights" in " ".join(checked.stderr.split())
    async with serving(tmp_path, None) as served:
        command = ("create", str(tiny), "--server", served.address, *flags(WEIGHTED))
        created = await asyncio.to_thread(invoke, *command)
    assert "server.base_weights" in words(created)[2]


def test_a_configuration_that_names_its_servers_weights_is_told_nothing(tiny):
    given = (*WEIGHTED, "server.base_weights=base")
    quiet = invoke("config", "check", str(tiny), *flags(given))
    assert (quiet.exit_code, quiet.stderr) == (0, "")
