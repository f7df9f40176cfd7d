"""A run's folder: new, resumable, another run's, or no run's at all."""

from __future__ import annotations

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.configuration import load
from fedlora_cli.run_folder import RunFolder

CONFIG = """
[run]
name = "t"
[model]
base = "m"
task = "causal_lm"
[adapter]
target_modules = ["q"]
[data]
path = "rows.jsonl"
"""


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "t.toml"
    file.write_text(CONFIG)
    return lambda *overrides: load(file, overrides, environ={})


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "t")


def test_a_new_folder_gets_the_resolved_configuration(config, folder, tmp_path):
    assert folder.prepare(config("rounds.num_rounds=3", "workers.count=5"), fresh=False) is False
    again = load(folder.config_file, environ={})
    assert again.run == config("rounds.num_rounds=3").run
    assert again.section("workers")["count"] == 5
    assert again.section("data")["path"] == str(tmp_path / "rows.jsonl")


def test_the_same_configuration_goes_on(config, folder):
    folder.prepare(config(), fresh=False)
    assert folder.prepare(config(), fresh=False) is True


def test_what_does_not_change_the_result_may_change(config, folder):
    folder.prepare(config(), fresh=False)
    other = config("workers.count=3", "server.idle_timeout_seconds=9", "worker.threads=1")
    assert folder.prepare(other, fresh=False) is True


def test_another_configuration_is_refused_with_the_keys_that_differ(config, folder):
    folder.prepare(config(), fresh=False)
    with pytest.raises(FedLoraError) as caught:
        folder.prepare(config("rounds.num_rounds=9", "method.core=x"), fresh=False)
    assert caught.value.reason is Reason.ALREADY_EXISTS
    assert "rounds.num_rounds: 8 -> 9" in str(caught.value)
    assert 'method.core: unset -> "x"' in str(caught.value)
    assert "--fresh" in str(caught.value)


def test_fresh_removes_the_earlier_run(config, folder):
    folder.prepare(config(), fresh=False)
    (folder.root / "state").mkdir()
    assert folder.prepare(config("rounds.num_rounds=9"), fresh=True) is False
    assert not (folder.root / "state").exists()


@pytest.mark.parametrize("others", [(), ("config.toml",)])
def test_a_folder_that_holds_something_else_is_never_touched(config, folder, others):
    folder.root.mkdir(parents=True)
    (folder.root / "thesis.txt").write_text("precious")
    for name in others:
        (folder.root / name).write_text(CONFIG)
    for fresh in (False, True):
        with pytest.raises(FedLoraError, match="holds no fedlora run"):
            folder.prepare(config(), fresh=fresh)
    assert (folder.root / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("left", [[], ["logs"], ["logs/cell.log", "scratch-1/state"], ["state"]])
def test_what_a_killed_run_or_cell_has_left_is_begun_anew(config, folder, left):
    folder.prepare(config(), fresh=False)
    for name in left:
        (folder.root / name).mkdir(parents=True)
    assert folder.prepare(config("rounds.num_rounds=9"), fresh=True) is False
    assert [path.name for path in folder.root.iterdir()] == ["config.toml"]


def test_a_folder_in_which_nothing_has_run_has_no_run(folder):
    assert folder.run() is None
    assert folder.rounds() == ()


def test_a_folder_that_is_run_is_neither_prepared_nor_removed_by_another_command(config, folder):
    with folder.held():
        folder.prepare(config(), fresh=False)
        with pytest.raises(FedLoraError) as caught, RunFolder(folder.root).held():
            pass
        assert caught.value.reason is Reason.STATE_LOCKED
        (folder.root / "state").mkdir()
        assert folder.prepare(config("rounds.num_rounds=9"), fresh=True) is False
        assert not (folder.root / "state").exists()
        # The lock is the same after the earlier run was removed.
        with pytest.raises(FedLoraError), RunFolder(folder.root).held():
            pass
    with folder.held():
        assert folder.prepare(config("rounds.num_rounds=9"), fresh=False) is True


def test_no_lock_is_left_in_a_folder_that_holds_something_else(folder):
    folder.root.mkdir(parents=True)
    (folder.root / "thesis.txt").write_text("precious")
    with pytest.raises(FedLoraError, match="holds no fedlora run"), folder.held():
        pass
    assert [path.name for path in folder.root.iterdir()] == ["thesis.txt"]
