"""What docker-compose.yml and the images set: real keys, documented; and who sees which secret."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlora.config.sections import all_sections
from fedlora_cli.configuration import section_types

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
OVERLAY = (ROOT / "docker" / "compose.gpu.yml").read_text()
DOCUMENTATION = (ROOT / "docs" / "docker.md").read_text()
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE)["services"]
KEYS = {
    f"FEDLORA_{section.name.replace('.', '__').upper()}__{key.name.upper()}"
    for section in all_sections(section_types())
    for key in section.keys
}
"""the configuration's keys, as the environment names them"""
OWN_VARIABLES = {"FEDLORA_CONFIG", "FEDLORA_SEATS", "FEDLORA_IDENTITIES"}
"""read by the loader and by client_worker.replica"""


def set_by(text: str) -> set[str]:
    """Variables that a Dockerfile or a Compose file gives to a process."""
    told = re.sub(r"\$\{[^}]*\}|#.*", "", text)
    return set(re.findall(r"\b(FEDLORA_\w+)[=:]", told))


@pytest.mark.parametrize(
    "file", ["docker-compose.yml", "docker/compose.gpu.yml", "docker/aggregator.Dockerfile",
             "docker/worker.Dockerfile"],
)  # fmt: skip
def test_every_variable_that_is_set_is_a_key_of_the_configuration(file: str) -> None:
    found = set_by((ROOT / file).read_text())
    assert found
    assert found <= KEYS | OWN_VARIABLES


def test_a_variable_that_is_no_key_is_found() -> None:
    planted = "  FEDLORA_SERVER__IDENTITY_DIRECTORY: /identity\n  FEDLORA_WORKER__NAME: ${X:-a}\n"
    assert set_by(planted) - KEYS == {"FEDLORA_SERVER__IDENTITY_DIRECTORY"}


def table_rows(heading: str) -> Iterator[list[str]]:
    """The cells of the first table under a heading of docs/docker.md."""
    section = DOCUMENTATION.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for line in section.splitlines():
        if line.startswith("| `"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def defaults(text: str) -> dict[str, str]:
    """What a Compose file reads from its environment, and takes where it is not set."""
    return dict(re.findall(r"\$\{(\w+)(?::?-([^}]*))?\}", text))


def test_the_settings_in_the_documentation_are_those_of_the_compose_file() -> None:
    told = {
        name: default.strip("`")
        for names, default, _ in table_rows("Settings")
        for name, default in zip(
            re.findall(r"`(\w+)`", names), default.split(", "), strict=True
        )
    }  # fmt: skip
    read = defaults(COMPOSE)
    assert set(told) == set(read)
    assert {n: v for n, v in told.items() if v != read[n]} == {}


def test_what_the_images_set_is_told_with_its_value() -> None:
    told = {
        name.strip("`"): {"aggregator": aggregator, "worker": worker}
        for name, aggregator, worker, _ in table_rows("What the images set")
    }
    for image in ("aggregator", "worker"):
        text = (ROOT / "docker" / f"{image}.Dockerfile").read_text().rpartition("\nFROM ")[2]
        given = re.findall(r"^ENV ((?:.*\\\n)*.*)$", text, re.MULTILINE)
        found = dict(re.findall(r"\b(\w+)=(\S+)", " ".join(given)))
        assert len(found) > 10
        assert found == {
            name: by_image[image].strip("`") for name, by_image in told.items() if by_image[image]
        }


# --- identities ------------------------------------------------------------------------------


def mounts(service: str) -> dict[str, str]:
    """source -> target with its mode."""
    return dict(
        re.fullmatch(r"(\$\{[^}]*\}|[^:]+):(.*)", volume).groups()  # type: ignore[misc, union-attr]
        for volume in SERVICES[service].get("volumes", [])
    )


def test_both_services_prove_who_they_are_and_neither_may_do_without() -> None:
    assert SERVICES["aggregator"]["environment"]["FEDLORA_SERVER__IDENTITY_DIR"] == "/identity"
    assert mounts("aggregator")["server-identity"] == "/identity:ro"
    folder = SERVICES["worker"]["environment"]["FEDLORA_IDENTITIES"]
    assert mounts("worker")["worker-identities"] == f"{folder}:ro"
    assert "INSECURE" not in COMPOSE


def test_nobody_sees_the_key_of_another_kind() -> None:
    identities = {"authority", "server-identity", "operator-identity", "worker-identities"}
    seen = {name: identities & set(mounts(name)) for name in SERVICES}
    assert seen.pop("identities") == identities
    assert seen.pop("aggregator") == {"server-identity"}
    assert seen.pop("worker") == {"worker-identities"}
    assert not set().union(*seen.values())


def test_the_service_that_makes_keys_has_no_network() -> None:
    assert SERVICES["identities"]["network_mode"] == "none"


# --- monitoring ------------------------------------------------------------------------------


def test_images_that_are_not_ours_are_pinned_and_start_only_when_asked_for() -> None:
    others = {name: service for name, service in SERVICES.items() if "build" not in service}
    assert set(others) == {"prometheus", "grafana"}
    for service in others.values():
        assert service["profiles"] == ["monitoring"]
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        assert not service["user"].startswith("0")


def test_grafana_finds_the_dashboard_where_it_is_told_to_look() -> None:
    folders = {target.removesuffix(":ro"): source for source, target in mounts("grafana").items()}
    provisioning = ROOT / folders["/etc/grafana/provisioning"]
    (providers,) = (provisioning / "dashboards").glob("*.yml")
    (provider,) = yaml.safe_load(providers.read_text())["providers"]
    assert list((ROOT / folders[provider["options"]["path"]]).glob("*.json"))
    (sources,) = (provisioning / "datasources").glob("*.yml")
    (source,) = yaml.safe_load(sources.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_what_is_mounted_from_this_repository_is_there() -> None:
    sources = {source for name in SERVICES for source in mounts(name) if source.startswith("./")}
    assert sources
    assert [source for source in sorted(sources) if not (ROOT / source).exists()] == []
