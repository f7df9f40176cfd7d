"""Clients' strings that would like to be paths."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import save
from support.adversarial_files import MANIFEST, tensors
from support.runs import run_spec

from aggregator_service.store.blobs import BlobStore
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import check_worker_name

CLIMBING = [
    f"{'../' * depth}{name}" for depth in (1, 2, 8) for name in ("x", "etc/passwd", "blobs/aa")
]
WINDOWS = [
    "..\\..\\x",
    "C:\\x",
    "C:x",
    "\\\\server\\share",
    "NUL",
    "con.txt",
    "x:stream",
    "x\\..\\y",
]
ABSOLUTE = ["/", "//", "/etc/passwd", "/dev/full", "/proc/self/mem", "~", "~root/x", "file:///x"]
DOTS = [".", "..", "...", "./x", "x/.", "x/..", "x/../y", ".hidden", "x/", " "]
CONTROL = ["a\0b", "\0", "a\nb", "a\r\nb", "\x1b[2J", "\x07", "\x7f", "a\tb"]
UNICODE = ["\u202egnp.exe", "\uff0e\uff0e\uff0fx", "\u2024\u2024/x", "e\u0301", "\ufeff", "\ud800"]
SHELL = ["$(id)", "`id`", "; rm -rf x", "| cat", "%2e%2e%2f", "%s%n", "${HOME}", "*", "-rf"]
LONG = ["n" * 256, "n/" * 3000, "n" * 1_000_000]
NAMES = ["", *CLIMBING, *WINDOWS, *ABSOLUTE, *DOTS, *CONTROL, *UNICODE, *SHELL, *LONG]
assert len(NAMES) == len(set(NAMES)) >= 60

_opened: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _opened is not None and event in ("open", "os.rename", "os.remove", "os.mkdir", "os.link"):
        _opened.extend(os.fsdecode(a) for a in arguments[:2] if isinstance(a, (str, bytes, Path)))


sys.addaudithook(_watch)


@contextmanager
def opened_paths() -> Iterator[list[str]]:
    """The paths of all files opened, renamed, made and removed meanwhile, whoever does it."""
    global _opened
    _opened = paths = []
    try:
        yield paths
    finally:
        _opened = None


@pytest.mark.parametrize("name", NAMES, ids=lambda n: ascii(n[:20]))
def test_the_key_of_an_upload_is_never_part_of_a_path(tmp_path: Path, name: str):
    data = save(tensors())
    store = BlobStore(tmp_path / "state")
    with opened_paths() as paths:
        writer = store.open_upload(name, total_bytes=len(data), manifest=MANIFEST)
        writer.write(0, data[:100])
        writer.suspend()
        assert store.durable_bytes(name) == 100
    files = [p for p in paths if not re.fullmatch(r"[rwab+]+", p)]
    assert files, "the watch must see the upload's own file"
    for path in files:
        assert Path(path).is_relative_to(tmp_path / "state")
        assert re.fullmatch(r"[0-9a-f]{64}\.[0-9a-f]{8}\.part", Path(path).name)


def test_different_keys_are_different_uploads(tmp_path: Path):
    store = BlobStore(tmp_path)
    data = save(tensors())
    writers = [store.open_upload(n, total_bytes=len(data), manifest=MANIFEST) for n in NAMES]
    assert len(list((tmp_path / "uploads").iterdir())) == len(NAMES)
    for writer in writers:
        writer.discard()
    assert list((tmp_path / "uploads").iterdir()) == []


def test_the_watch_would_see_a_path_outside(tmp_path: Path):
    with opened_paths() as paths:
        (tmp_path / "evil").write_bytes(b"")
    assert str(tmp_path / "evil") in paths


NO_WORKER = [n for n in NAMES if n not in ("con.txt", "NUL", "C:x", "x:stream")]


@pytest.mark.parametrize("name", NO_WORKER, ids=lambda n: ascii(n[:20]))
def test_such_a_string_is_no_name_of_a_worker_and_its_refusal_is_safe_to_print(name: str):
    with pytest.raises(FedLoraError) as caught:
        check_worker_name(name)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


NO_RUN = [n for n in NAMES if n not in ("con.txt", "NUL")]


@pytest.mark.parametrize("name", NO_RUN, ids=lambda n: ascii(n[:20]))
def test_such_a_string_is_no_name_of_a_run(name: str):
    with pytest.raises(FedLoraError) as caught:
        run_spec(name)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert str(caught.value).isprintable()
