"""`fedlora workers`: names that can be known beforehand, an identity for each."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.app import app

COMMAND = ["workers", "--devices", "cpu,cpu", "--name", "node", "--set", "data.path=unused"]


def test_names_and_devices_are_listed_without_starting_anything(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*COMMAND, "--list"], catch_exceptions=False)
    assert done.stdout.splitlines() == ["node-cpu - cpu", "node-cpu-2 - cpu"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["identity_dir", "token_file"])
def test_one_workers_identity_is_refused_for_several(tmp_path, monkeypatch, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedLoraError) as caught:
        CliRunner().invoke(app, [*COMMAND, "--set", f"worker.{key}=one"], catch_exceptions=False)
    assert caught.value.reason is Reason.INVALID_CONFIG
    assert "--identities DIR" in str(caught.value)
    assert not list(tmp_path.iterdir())
