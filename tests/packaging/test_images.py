"""What the images are made of, read from the files that build them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.image_scripts import image_script

ROOT = Path(__file__).resolve().parents[2]
IMAGES = {"aggregator": "aggregator_service", "worker": "client_worker"}
REQUIREMENTS = image_script("requirements")
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def dockerfile(image: str) -> str:
    return (ROOT / "docker" / f"{image}.Dockerfile").read_text()


def last_stage(image: str) -> list[str]:
    """Its instructions, one a line."""
    joined = dockerfile(image).replace("\\\n", " ")
    return joined[joined.rindex("\nFROM ") + 1 :].splitlines()


def names_for(image: str) -> set[str]:
    (extras,) = re.findall(r"requirements\.py ([a-z ]+) <", dockerfile(image))
    lines = REQUIREMENTS.requirements(PYPROJECT, *extras.split())
    return {re.split(r"[<>=~!\[; ]", line, maxsplit=1)[0] for line in lines}


def test_the_aggregator_installs_health_and_no_model_library() -> None:
    names = names_for("aggregator")
    assert {"torch", "grpcio", "grpcio-health-checking", "tensorboard"} <= names
    assert not names & {"transformers", "peft", "nvidia-ml-py"}


def test_the_worker_installs_model_libraries_and_no_server_extra() -> None:
    names = names_for("worker")
    assert {"torch", "grpcio", "transformers", "peft"} <= names
    assert not names & {"grpcio-health-checking", "grpcio-reflection"}


def test_an_extra_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(SystemExit, match=r"no extra 'server'; it has aggregator, worker"):
        REQUIREMENTS.requirements(PYPROJECT, "server")


@pytest.mark.parametrize(("image", "service"), IMAGES.items())
def test_an_image_copies_the_shared_package_and_its_own_service(image: str, service: str) -> None:
    text = dockerfile(image)
    copied = re.findall(r"^COPY (\w+) /app/(\w+)$", text, re.MULTILINE)
    assert copied == [("fedlora", "fedlora"), (service, service)]


@pytest.mark.parametrize("image", IMAGES)
def test_the_ignore_file_lets_in_exactly_what_is_copied(image: str) -> None:
    text = dockerfile(image)
    copied: set[str] = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        copied.update(sources)
    ignore = (ROOT / "docker" / f"{image}.Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    assert {next((a for a in allowed if is_within(c, a)), c) for c in copied} == allowed
    assert all((ROOT / source).exists() for source in copied)


def is_within(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


@pytest.mark.parametrize("image", IMAGES)
def test_the_last_stage_starts_from_nothing_and_runs_no_command(image: str) -> None:
    first, *others = last_stage(image)
    assert first == "FROM scratch"
    assert not [line for line in others if line.startswith(("RUN", "SHELL"))]
    exec_form = [line for line in others if line.strip().startswith(("CMD", "ENTRYPOINT"))]
    assert exec_form == [line for line in exec_form if '["python"' in line]


@pytest.mark.parametrize("image", IMAGES)
def test_only_wheels_are_installed_and_only_at_the_pinned_versions(image: str) -> None:
    assert "PIP_ONLY_BINARY=:all:" in dockerfile(image)
    installs = re.findall(r"pip --python .*? install (.*)", dockerfile(image))
    assert len(installs) == {"aggregator": 2, "worker": 3}[image]
    assert all("-c constraints.txt" in install for install in installs)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_python_itself_as_a_user_that_is_not_root(image: str) -> None:
    text = dockerfile(image)
    assert re.search(r"^USER ([1-9]\d*):\1$", text, re.MULTILINE)
    # The exec form: a signal reaches Python and no shell in between.
    assert re.search(r'^ENTRYPOINT \["python", "-m", "[\w.]+"\]$', text, re.MULTILINE)
    assert "HEALTHCHECK" in text


def test_the_stop_grace_is_above_what_either_service_takes() -> None:
    from aggregator_service.config import AggregatorConfig
    from client_worker.app import GOODBYE_SECONDS

    graces = re.findall(r"stop_grace_period: (\d+)s", (ROOT / "docker-compose.yml").read_text())
    assert len(graces) == len(IMAGES)
    assert min(map(int, graces)) > max(AggregatorConfig().shutdown_grace_seconds, GOODBYE_SECONDS)
