"""The committed protobuf code is what proto/ says, and the declared floors are what it demands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "fedlora" / "proto" / "v1"


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    protos = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "proto").rglob("*.proto"))
    # protoc finds mypy-protobuf's plugins on the PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--python_out={out}",
         f"--grpc_python_out={out}", f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}",
         *protos],
        cwd=ROOT, env={**os.environ, "PATH": path}, check=True,
    )  # fmt: skip
    return out / "fedlora" / "proto" / "v1"


def test_the_committed_code_is_what_the_protos_generate(regenerated: Path) -> None:
    stale = [
        file.name
        for file in sorted(GENERATED.iterdir())
        if "_pb2" in file.name and file.read_bytes() != (regenerated / file.name).read_bytes()
    ]
    assert not stale, f"{stale} differ from proto/: run `make proto`"


def test_every_message_and_every_service_has_its_committed_code(regenerated: Path) -> None:
    needed = {f.name for f in regenerated.iterdir() if "_pb2_grpc" not in f.name}
    for proto in (ROOT / "proto").rglob("*.proto"):
        if re.search(r"^service ", proto.read_text(), re.MULTILINE):
            needed |= {f"{proto.stem}_pb2_grpc.py", f"{proto.stem}_pb2_grpc.pyi"}
    assert {f.name for f in GENERATED.iterdir() if "_pb2" in f.name} == needed


def demanded_versions(generated: Path) -> dict[str, set[str]]:
    """The runtimes the generated modules refuse to do without, by distribution."""
    grpc, protobuf = set(), set()
    for file in generated.glob("*_pb2_grpc.py"):
        grpc |= set(re.findall(r"^GRPC_GENERATED_VERSION = '([^']+)'", file.read_text(), re.M))
    for file in generated.glob("*_pb2.py"):
        call = re.search(
            r"ValidateProtobufRuntimeVersion\(\s*[\w.]+,\s*(\d+),\s*(\d+),\s*(\d+),",
            file.read_text(),
        )
        assert call is not None, f"{file.name} states no protobuf version"
        protobuf.add(".".join(call.groups()))
    return {"grpcio": grpc, "protobuf": protobuf}


def declared_floors() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["aggregator"]]
    return {
        r.name: next(s.version for s in r.specifier if s.operator == ">=")
        for r in map(Requirement, lines)
        if any(s.operator == ">=" for s in r.specifier)
    }


@pytest.mark.parametrize("name", ["grpcio", "protobuf"])
def test_the_declared_floor_is_the_version_the_generated_code_demands(name: str) -> None:
    assert demanded_versions(GENERATED)[name] == {declared_floors()[name]}


@pytest.mark.parametrize("name", ["grpcio-status", "grpcio-health-checking", "grpcio-reflection"])
def test_the_grpc_packages_move_together(name: str) -> None:
    # Each is generated code as well, and refuses an older grpcio than its own version.
    assert declared_floors()[name] == declared_floors()["grpcio"]


def test_code_of_another_generator_is_noticed(tmp_path: Path) -> None:
    for file in GENERATED.glob("*_pb2*.py"):
        text = file.read_text().replace(f"'{declared_floors()['grpcio']}'", "'9.9.9'")
        (tmp_path / file.name).write_text(text)
    assert demanded_versions(tmp_path)["grpcio"] == {"9.9.9"}
