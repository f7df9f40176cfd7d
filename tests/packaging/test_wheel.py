"""The wheel holds the four packages and nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fedlora", "aggregator_service", "client_worker", "fedlora_cli")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # hatchling writes beside pyproject.toml: it gets a copy of what the build reads.
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    for name in (*PACKAGES, "proto", "docker"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel"],
        cwd=source, check=True, capture_output=True,
    )  # fmt: skip
    (file,) = (source / "dist").glob("fedlora-*-py3-none-any.whl")
    return zipfile.ZipFile(file)


def test_the_top_level_is_the_four_packages_and_the_metadata(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == set(PACKAGES)
    assert len(top) == len(PACKAGES) + 1


def test_every_module_of_the_tree_is_in_it(wheel: zipfile.ZipFile) -> None:
    tree = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == tree


def test_it_is_typed_licensed_and_carries_no_sources_of_generated_code(
    wheel: zipfile.ZipFile,
) -> None:
    names = wheel.namelist()
    assert "fedlora/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".proto", ".pyc"))]


def test_every_command_it_installs_names_a_function_it_holds(wheel: zipfile.ZipFile) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for command, target in scripts.items():
        module, _, function = target.partition(":")
        tree = ast.parse(wheel.read(module.replace(".", "/") + ".py"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in names, f"{command}: {target} is not there"
