"""The API of three versions of Kubernetes takes every object, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.deploy_tools import VERSIONS, missing_tools, schema_findings
from support.manifests import OVERLAYS, is_of_the_api, overlay, title

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())

# Their schemas are installed with their controllers, not with Kubernetes.
CUSTOM = {
    "Certificate": "cert-manager.io/v1",
    "Issuer": "cert-manager.io/v1",
    "Gateway": "gateway.networking.k8s.io/v1",
    "TLSRoute": "gateway.networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
}


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
def test_what_the_api_does_not_have_is_of_a_known_controller(name: str) -> None:
    for found in overlay(name):
        if not is_of_the_api(found):
            assert CUSTOM.get(found["kind"]) == found["apiVersion"], title(found)
