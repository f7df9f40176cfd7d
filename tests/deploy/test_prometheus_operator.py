"""In a cluster, alerts and dashboard find what they ask for: jobs by name, as with Compose."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.deploy_tools import CHART, KUSTOMIZE, ROOT, Object, charted, missing_tools
from support.manifests import (
    container_ports,
    labels_of,
    of_kind,
    overlay,
    selected,
    workloads,
)
from support.promql import Node, parse
from support.relabel import pod_labels, relabelled

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())

MONITORING = ROOT / "deploy" / "monitoring"
ALERTS: Object = yaml.safe_load((MONITORING / "alerts.yml").read_text())
BOARD: Object = json.loads((MONITORING / "grafana" / "dashboards" / "fedlora.json").read_text())
COMPOSE_JOBS = {
    job["job_name"]
    for job in yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
}
OBJECTS = "prometheus-operator"
"""the overlay with the operator's objects"""
PARTY = {
    "aggregator": {"enabled": False},
    "workers": {"count": 0},
    "party": {"enabled": True},
    "monitoring": {"enabled": True, "prometheusOperator": True},
}


def jobs_of(objects: list[Object]) -> dict[str, str]:
    """The job of each workload's pods, by component, as the operator's scrape names it."""
    (monitor,) = of_kind(objects, "PodMonitor")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    # The operator's own name comes first; relabelings of the endpoint come after it.
    named = {"job": f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}"}
    found = {}
    for workload in selected(monitor["spec"]["selector"], objects):
        labels = labels_of(workload)
        job = relabelled({**named, **pod_labels(labels)}, endpoint["relabelings"])["job"]
        found[labels["app.kubernetes.io/component"]] = job
    return found


def asked_jobs(node: Node) -> set[tuple[str, str]]:
    """Sign and text of every matcher of the job in an expression."""
    own = {(sign, text) for label, sign, text in node.matchers if label == "job"}
    return own.union(*(asked_jobs(inner) for inner in node.inner))


def test_the_jobs_are_those_of_compose() -> None:
    run = jobs_of(overlay(OBJECTS))
    assert run == {"aggregator": "fedlora-aggregator", "worker": "fedlora-worker"}
    assert set(run.values()) == COMPOSE_JOBS
    assert jobs_of(charted(PARTY)) == {"party": "fedlora-worker"}


def test_a_prometheus_without_the_operator_is_told_the_same_names() -> None:
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"^```yaml\n(relabel_configs:\n.*?)^```$", guide, re.M | re.DOTALL)
    rules = yaml.safe_load(block)["relabel_configs"]
    monitors = of_kind(overlay(OBJECTS), "PodMonitor")[0]["spec"]["podMetricsEndpoints"]
    for component in ("aggregator", "worker", "party", "another"):
        labels = {"job": "pods", **pod_labels({"app.kubernetes.io/component": component})}
        assert relabelled(labels, rules) == relabelled(labels, monitors[0]["relabelings"])


def test_every_job_that_is_asked_for_is_one_of_the_clusters() -> None:
    expressions = [rule["expr"] for group in ALERTS["groups"] for rule in group["rules"]]
    expressions += [
        re.sub(r"\$\w+", ".*", target["expr"])
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
    ]
    asked = set[tuple[str, str]]().union(*(asked_jobs(parse(text)) for text in expressions))
    jobs = set(jobs_of(overlay(OBJECTS)).values())
    assert ("=", "fedlora-aggregator") in asked
    for sign, text in asked:
        met = {job for job in jobs if re.fullmatch(text, job)}
        assert met == ({text} if sign == "=" else jobs), (sign, text)


def test_what_is_monitored_has_the_port() -> None:
    for objects in (overlay(OBJECTS), charted(PARTY)):
        (monitor,) = of_kind(objects, "PodMonitor")
        found = selected(monitor["spec"]["selector"], objects)
        assert found == workloads(objects)
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert all(endpoint["port"] in container_ports(workload) for workload in found)


def test_the_rule_is_the_alerts_and_the_map_the_dashboard() -> None:
    (rule,) = of_kind(overlay(OBJECTS), "PrometheusRule")
    assert rule["spec"] == ALERTS
    for name in ("monitoring", OBJECTS):
        (board,) = of_kind(overlay(name), "ConfigMap")
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert {file: json.loads(text) for file, text in board["data"].items()} == {
            "fedlora.json": BOARD
        }


def test_the_rules_file_is_what_its_script_writes() -> None:
    done = subprocess.run(
        [sys.executable, MONITORING / "prometheus_rule.py"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    file = KUSTOMIZE / "components" / "alerts" / "prometheus-rule.yaml"
    assert file.read_text() == done.stdout, "run `make docs`"


def test_the_chart_carries_the_files_themselves() -> None:
    files = (CHART / "files").iterdir()
    carried = {file.name: file.resolve().relative_to(ROOT) for file in files}
    assert carried == {
        "alerts.yml": Path("deploy/monitoring/alerts.yml"),
        "fedlora.json": Path("deploy/monitoring/grafana/dashboards/fedlora.json"),
    }


def test_a_party_is_not_alarmed_for_want_of_an_aggregator() -> None:
    assert not of_kind(charted(PARTY), "PrometheusRule")
