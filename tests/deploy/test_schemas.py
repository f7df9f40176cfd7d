"""Three versions of Kubernetes take every object of theirs, and controllers those of theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.deploy_tools import (
    VERSIONS,
    Object,
    controller_findings,
    missing_tools,
    schema_findings,
)
from support.manifests import OVERLAYS, is_of_the_api, of_kind, overlay

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OVERLAYS)
def test_the_api_takes_an_overlay(name: str, version: str, tmp_path: Path) -> None:
    objects = [found for found in overlay(name) if is_of_the_api(found)]
    assert schema_findings(objects, version, tmp_path) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_api_refuses_a_field_that_it_does_not_have(version: str, tmp_path: Path) -> None:
    objects = [found for found in overlay("cpu") if found["kind"] == "Job"]
    objects[0]["spec"]["completionsMode"] = objects[0]["spec"].pop("completionMode")
    (finding,) = schema_findings(objects, version, tmp_path)
    assert "completionsMode" in finding


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_controllers_take_what_is_theirs(name: str) -> None:
    objects = [found for found in overlay(name) if not is_of_the_api(found)]
    assert controller_findings(objects) == []


@pytest.mark.parametrize(
    ("name", "kind", "mistake", "told"),
    [
        ("tls", "Certificate", lambda s: s.update(renewBefor="1h"), "renewBefor"),
        ("tls", "Certificate", lambda s: s["usages"].append("server"), "usages[2]"),
        ("tls", "Issuer", lambda s: s["ca"].pop("secretName"), "secretName"),
        ("gateway", "Gateway", lambda s: s["listeners"][0]["tls"].update(mode="Pass"), "mode"),
        ("gateway", "TLSRoute", lambda s: s.pop("hostnames"), "hostnames"),
        (
            "prometheus-operator",
            "PodMonitor",
            lambda s: s["podMetricsEndpoints"][0].update(interval="15 s"),
            "interval",
        ),
        (
            "prometheus-operator",
            "PrometheusRule",
            lambda s: s["groups"][0]["rules"][0].pop("expr"),
            "expr",
        ),
    ],
)
def test_a_controller_refuses_what_is_not_its_own(
    name: str, kind: str, mistake: Callable[[Object], object], told: str
) -> None:
    (found, *_) = of_kind(overlay(name), kind)
    mistake(found["spec"])
    (finding,) = controller_findings([found])
    assert told in finding


def test_a_controllers_version_that_does_not_exist_is_refused() -> None:
    (found, *_) = of_kind(overlay("gateway"), "TLSRoute")
    found["apiVersion"] = "gateway.networking.k8s.io/v2"
    assert len(controller_findings([found])) == 1
