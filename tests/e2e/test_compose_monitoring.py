"""`docker compose --profile monitoring`, with a Prometheus that can be had without a registry.

Debian packages the server, so the scrape configuration, the alert rules, the mounts, the networks
and the confinement are those of docker-compose.yml, and only the image is another. Nobody packages
Grafana: its mounts are checked in tests/packaging/test_compose_file.py.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from support.compose import Project, missing_engine
from support.compose_federation import RUN, federation
from support.waiting import until

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing_engine()), reason=f"no Docker engine: {missing_engine()}"),
]

DOCKERFILE = """
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus \\
 && install -d -o 65534 -g 65534 /prometheus
ENTRYPOINT ["/usr/bin/prometheus"]
"""
IMAGE = "fedlora-test-prometheus"
STAND_INS = {
    "prometheus": {
        "image": IMAGE,
        "build": {"context": ".", "dockerfile_inline": DOCKERFILE},
    },
    # Compose pulls the image of a service that it starts nothing of, too.
    "grafana": {"image": IMAGE, "deploy": {"replicas": 0}},
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("config")
    with federation(folder, services=STAND_INS, profile="monitoring") as project:
        yield project


def ask(project: Project, question: str) -> Any:
    address = project.published("prometheus", 9090)
    with urllib.request.urlopen(f"http://{address}/api/v1/{question}", timeout=20) as answer:
        return json.load(answer)["data"]


def scraped(project: Project) -> list[tuple[str, str]]:
    """Job and health of every process that Prometheus asks."""
    found = ask(project, "targets")["activeTargets"]
    return sorted((target["labels"]["job"], target["health"]) for target in found)


async def test_every_process_is_found_and_answers(project: Project) -> None:
    expected = [("fedlora-aggregator", "up"), ("fedlora-worker", "up"), ("fedlora-worker", "up")]
    await until(lambda: scraped(project) == expected, seconds=120)


async def test_the_run_is_among_what_they_tell(project: Project) -> None:
    phases = "query?query=fedlora_run_phase"
    await until(lambda: ask(project, phases)["result"], seconds=60)
    assert {series["metric"]["run"] for series in ask(project, phases)["result"]} == {RUN}


async def test_every_rule_can_be_evaluated(project: Project) -> None:
    def healths() -> set[str]:
        groups = ask(project, "rules")["groups"]
        return {rule["health"] for group in groups for rule in group["rules"]}

    await until(lambda: healths() == {"ok"}, seconds=60)
