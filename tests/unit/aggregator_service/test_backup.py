"""The backup command of the image does what `fedlora backup` does."""

from __future__ import annotations

import sys
from pathlib import Path

from aggregator_service.backup import main
from aggregator_service.store.blobs import BlobStore
from aggregator_service.store.sqlite import DATABASE_NAME, SqliteStateStore
from fedlora.exit_codes import ExitCode


def test_a_backup_is_made_and_told(tmp_path: Path, capsys, monkeypatch) -> None:
    state, out = tmp_path / "state", tmp_path / "backup"
    BlobStore(state)
    SqliteStateStore(state / DATABASE_NAME).close()
    monkeypatch.setattr(sys, "argv", ["backup", str(state), str(out)])
    assert main() == ExitCode.OK
    assert (out / DATABASE_NAME).is_file()
    assert capsys.readouterr().out.endswith(f"0 files, {_size(out)} bytes -> {out}\n")


def test_a_folder_without_state_is_named(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["backup", str(tmp_path), str(tmp_path / "out")])
    assert main() == ExitCode.USAGE
    assert f"{tmp_path} holds no state" in capsys.readouterr().err


def _size(folder: Path) -> int:
    return (folder / DATABASE_NAME).stat().st_size
