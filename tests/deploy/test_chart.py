"""The Helm chart is the overlays again: object for object, with values in place of patches."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from support.deploy_tools import CHART, Object, charted, lint_findings, missing_tools
from support.manifests import OVERLAYS, of_kind, overlay, title, values_of

import fedlora

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())


def by_title(objects: list[Object]) -> dict[str, Object]:
    found = {title(each): each for each in objects}
    assert len(found) == len(objects)
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_chart_makes_what_the_overlay_makes(name: str) -> None:
    assert by_title(charted(values_of(name))) == by_title(overlay(name))


def test_an_overlay_has_its_values_file() -> None:
    files = {file.stem.removeprefix("values-") for file in CHART.glob("values-*.yaml")}
    assert files | {"cpu"} == set(OVERLAYS)


def test_helm_finds_nothing_wrong_but_a_missing_picture() -> None:
    assert [finding["error"] for finding in lint_findings()] == ["icon is recommended"]


def test_another_number_of_workers_brings_their_identities() -> None:
    (job,) = of_kind(charted({"workers": {"count": 7, "minAvailable": 5}}), "Job")
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 7
    (volume,) = (
        volume
        for volume in job["spec"]["template"]["spec"]["volumes"]
        if volume["name"] == "identities"
    )
    names = [source["secret"]["name"] for source in volume["projected"]["sources"]]
    assert names == [f"fedlora-worker-{index}" for index in range(7)]


def test_values_that_yaml_would_read_as_something_else_stay_what_they_are() -> None:
    objects = charted({
        "run": "2026",
        "images": {"pullSecrets": ["1e3"]},
        "aggregator": {"storageClass": "123", "maxUploads": 2_000_000},
        "enrolment": {"enabled": True},
        "gateway": {"enabled": True, "hostname": "*.example.org", "namespace": "42"},
        "certManager": {"enabled": True, "serverNames": ["*.example.org"]},
        "monitoring": {"enabled": True, "namespace": "43"},
    })  # fmt: skip
    told = json.dumps(objects)
    for value in ('"name": "2026"', '"name": "1e3"', '"storageClassName": "123"', '"2000000"'):
        assert value in told
    assert told.count('"*.example.org"') == 2 + 2 + 1, "listeners, routes, the certificate"
    assert told.count('"kubernetes.io/metadata.name": "42"') == 1
    assert told.count('"kubernetes.io/metadata.name": "43"') == 1


def test_a_gateway_passes_on_to_ports_that_the_service_has() -> None:
    """Workers that were given their identities need no invitation, and a gateway all the same."""
    for enrolment, ports in ((True, {8400, 8401}), (False, {8400})):
        objects = charted({"gateway": {"enabled": True}, "enrolment": {"enabled": enrolment}})
        (gateway,) = of_kind(objects, "Gateway")
        (service,) = of_kind(objects, "Service")
        assert {listener["port"] for listener in gateway["spec"]["listeners"]} == ports
        assert {port["port"] for port in service["spec"]["ports"]} == ports
        routes = of_kind(objects, "TLSRoute")
        assert {route["spec"]["rules"][0]["backendRefs"][0]["port"] for route in routes} == ports


def test_examples_may_lie_on_a_volume_of_ones_own() -> None:
    source = {"persistentVolumeClaim": {"claimName": "my-examples", "readOnly": True}}
    (job,) = of_kind(charted({"examples": source}), "Job")
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert [volume for volume in volumes if volume["name"] == "examples"] == [
        {"name": "examples", **source}
    ]


def test_a_party_elsewhere_may_call_its_servers_address_alone() -> None:
    values = values_of("party") | {"party": {"enabled": True, "serverCidr": "192.0.2.10/32"}}
    (policy,) = of_kind(charted(values), "NetworkPolicy")
    assert policy["spec"]["egress"][0]["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"worker": {}}, "worker"),
        ({"workers": {"count": "4"}}, "count"),
        ({"workers": {"devices": "cpu"}}, "devices"),
        ({"party": {"server": "fedlora.example.org"}}, "server"),
        ({"aggregator": {"device": "gpu"}}, "device"),
    ],
)
def test_values_that_mean_nothing_are_refused(values: Object, named: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        charted(values)
    assert named in refused.value.stderr


def test_the_schema_knows_every_value_and_no_other() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() == values.keys()
    for name, section in schema["properties"].items():
        if "$ref" in section:
            section = schema["definitions"][section["$ref"].rpartition("/")[2]]
        if "properties" in section:
            assert section["additionalProperties"] is False, name
            assert section["properties"].keys() == values[name].keys(), name


def test_images_and_chart_carry_the_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert {chart["version"], chart["appVersion"]} == {fedlora.__version__}
    for name in OVERLAYS:
        suffix = "-cuda" if name == "gpu" else ""
        for workload in of_kind(overlay(name), "StatefulSet", "Job", "Deployment"):
            for container in workload["spec"]["template"]["spec"]["containers"]:
                _, _, tag = container["image"].rpartition(":")
                assert tag == fedlora.__version__ + suffix, title(workload)
