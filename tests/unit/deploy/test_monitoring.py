"""The files of deploy/monitoring fit each other and the services' documentation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.promql import parse

ROOT = Path(__file__).parents[3]
MONITORING = ROOT / "deploy" / "monitoring"
BOARD: dict[str, Any] = json.loads(
    (MONITORING / "grafana" / "dashboards" / "fedlora.json").read_text()
)
PAGE = (ROOT / "docs" / "metrics.md").read_text()


def read(name: str) -> Any:
    return yaml.safe_load((MONITORING / name).read_text())


def queries() -> Iterator[tuple[str, str]]:
    """Panel and expression, with Grafana's variables filled in."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], re.sub(r"\$\w+", ".*", target["expr"])


def test_the_dashboard_is_what_its_script_writes():
    done = subprocess.run(
        [sys.executable, MONITORING / "dashboard.py"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == BOARD, "run `make docs`"


def test_the_dashboard_asks_only_what_can_be_read():
    found = list(queries())
    assert len(found) > 40
    for _, expression in found:
        parse(expression)


def test_no_two_panels_lie_on_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_a_legend_names_only_labels_that_the_answer_has():
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            by = re.search(r"by \(([\w, ]+)\)", target["expr"])
            if by:
                assert legend <= set(re.split(r", ?", by[1])), panel["title"]


def test_everything_asks_the_source_that_is_chosen_first_the_one_that_is_provisioned():
    (source,) = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    chosen, *variables = BOARD["templating"]["list"]
    assert (chosen["type"], chosen["query"]) == ("datasource", source["type"])
    assert source["isDefault"]
    assert chosen["current"]["value"] == "default"
    askers = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    askers += [target for panel in askers for target in panel["targets"]]
    askers += [*variables, *BOARD["annotations"]["list"]]
    uids = {asker["datasource"]["uid"] for asker in askers}
    assert uids == {f"${{{chosen['name']}}}"}


def test_prometheus_reads_both_services_at_their_ports():
    config = read("prometheus.yml")
    aggregator, worker = config["scrape_configs"]
    assert aggregator["static_configs"] == [{"targets": ["aggregator:9400"]}]
    assert worker["dns_sd_configs"][0]["names"] == ["worker"]
    assert worker["dns_sd_configs"][0]["port"] == 9401
    assert config["rule_files"] == ["/etc/prometheus/alerts.yml"]
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    asked = re.findall(r'job="([\w-]+)"', (MONITORING / "alerts.yml").read_text())
    assert set(asked) <= jobs


@pytest.mark.parametrize("group", read("alerts.yml")["groups"], ids=lambda group: group["name"])
def test_the_page_says_what_to_do_at_each_alert(group: dict[str, Any]):
    for rule in group["rules"]:
        assert f"### {rule['alert']}\n" in PAGE
