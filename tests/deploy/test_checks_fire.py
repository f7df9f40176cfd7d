"""A check that never fires is none: each is shown a manifest with the mistake it is for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import manifest_hardening, manifest_settings, manifest_wiring
from support.deploy_tools import Object, missing_tools
from support.manifests import containers, of_kind, overlay, pod_of

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())

Check = Callable[[list[Object]], list[str]]
Mistake = Callable[[Object], None]
"""changes one object for the worse"""


def of_pod(change: Callable[[Object], object]) -> Mistake:
    return lambda found: change(pod_of(found)) and None


def of_container(change: Callable[[Object], object]) -> Mistake:
    return lambda found: change(containers(found)[0]) and None


def of_spec(change: Callable[[Object], object]) -> Mistake:
    return lambda found: change(found["spec"]) and None


def variable(name: str, value: str) -> Mistake:
    def change(found: Object) -> None:
        variables = containers(found)[0]["env"]
        variables[:] = [each for each in variables if each["name"] != name]
        variables.append({"name": name, "value": value})

    return change


hardening, wiring, settings = manifest_hardening, manifest_wiring, manifest_settings
MISTAKES: list[tuple[Check, str, str, Mistake]] = [
    (hardening.pods_are_confined, "cpu", "Job", of_pod(lambda p: p.pop("enableServiceLinks"))),
    (
        hardening.pods_are_confined,
        "cpu",
        "StatefulSet",
        of_pod(lambda p: p["securityContext"].update(runAsUser=0)),
    ),
    (
        hardening.containers_are_confined,
        "party",
        "Deployment",
        of_container(lambda c: c["securityContext"].update(readOnlyRootFilesystem=False)),
    ),
    (
        hardening.containers_are_bounded,
        "gpu",
        "Job",
        of_container(lambda c: c["resources"]["limits"].pop("memory")),
    ),
    (
        hardening.scratch_is_bounded,
        "cpu",
        "Job",
        of_pod(lambda p: p["volumes"].append({"name": "more", "emptyDir": {}})),
    ),
    (
        hardening.commands_need_no_shell,
        "cpu",
        "Job",
        of_container(lambda c: c["readinessProbe"]["exec"].update(command=["sh", "-c", "true"])),
    ),
    (
        hardening.commands_need_no_shell,
        "cpu",
        "StatefulSet",
        of_container(lambda c: c.update(command=["python", "-m", "aggregator"])),
    ),
    (
        hardening.workers_are_probed,
        "cpu",
        "Job",
        of_container(lambda c: c.pop("readinessProbe")),
    ),
    (
        wiring.selectors_match,
        "cpu",
        "StatefulSet",
        of_spec(lambda s: s["selector"]["matchLabels"].pop("app.kubernetes.io/component")),
    ),
    (
        wiring.selectors_match,
        "cpu",
        "Service",
        of_spec(lambda s: s["selector"].update({"app.kubernetes.io/component": "server"})),
    ),
    (
        wiring.volumes_are_there,
        "cpu",
        "StatefulSet",
        of_spec(lambda s: s["volumeClaimTemplates"].clear()),
    ),
    (
        wiring.volumes_are_there,
        "party",
        "PersistentVolumeClaim",
        lambda found: found["metadata"].update(name="fedlora"),
    ),
    (
        wiring.sources_are_documented,
        "cpu",
        "StatefulSet",
        of_pod(lambda p: p["volumes"][0]["configMap"].update(name="run")),
    ),
    (
        wiring.certificates_fill_the_secrets,
        "tls",
        "Certificate",
        of_spec(lambda s: s.update(secretName="fedlora-server")),
    ),
    (
        wiring.certificates_fill_the_secrets,
        "tls",
        "Certificate",
        of_spec(lambda s: s.update(uris=["spiffe://fedlora/operator/aggregator"])),
    ),
    (
        wiring.ports_agree,
        "cpu",
        "Service",
        of_spec(lambda s: s["ports"][0].update(targetPort="http")),
    ),
    (
        wiring.ports_agree,
        "gateway",
        "TLSRoute",
        of_spec(lambda s: s["rules"][0]["backendRefs"][0].update(port=443)),
    ),
    (
        wiring.ports_agree,
        "cpu",
        "NetworkPolicy",
        of_spec(lambda s: s["podSelector"]["matchLabels"].update(app="fedlora")),
    ),
    (
        wiring.nothing_is_reachable_unasked,
        "party",
        "NetworkPolicy",
        of_spec(lambda s: s.update(policyTypes=["Ingress"])),
    ),
    (
        wiring.routes_pass_tls_on,
        "gateway",
        "Gateway",
        of_spec(lambda s: s["listeners"][0]["tls"].update(mode="Terminate")),
    ),
    (settings.variables_are_keys, "cpu", "Job", variable("FEDLORA_WORKER__TREADS", "1")),
    (settings.variables_are_keys, "cpu", "Job", variable("FEDLORA_WORKER__THREADS", "-1")),
    (
        settings.addresses_are_ports,
        "cpu",
        "StatefulSet",
        variable("FEDLORA_SERVER__HEALTH_ADDRESS", "0.0.0.0:8403"),
    ),
    (
        settings.addresses_are_ports,
        "cpu",
        "StatefulSet",
        of_container(lambda c: c["livenessProbe"]["grpc"].update(port=8400)),
    ),
    (
        settings.addresses_are_ports,
        "cpu",
        "StatefulSet",
        of_container(lambda c: c["livenessProbe"]["grpc"].pop("service")),
    ),
    (
        settings.workers_call_the_service,
        "cpu",
        "Job",
        variable("FEDLORA_WORKER__SERVER", "fedlora-server:8400"),
    ),
    (
        settings.files_are_mounted,
        "cpu",
        "StatefulSet",
        variable("FEDLORA_SERVER__STATE_DIR", "/state"),
    ),
    (
        settings.files_are_mounted,
        "cpu",
        "StatefulSet",
        variable("FEDLORA_SERVER__STATE_DIR", "/identity/state"),
    ),
    (
        settings.bounds_fit_the_limits,
        "cpu",
        "StatefulSet",
        variable("FEDLORA_SERVER__MEMORY_BYTES", "0"),
    ),
    (settings.bounds_fit_the_limits, "cpu", "Job", variable("FEDLORA_WORKER__THREADS", "8")),
    (
        settings.stops_are_long_enough,
        "cpu",
        "StatefulSet",
        of_pod(lambda p: p.update(terminationGracePeriodSeconds=10)),
    ),
    (
        settings.patience_outlasts_the_server,
        "cpu",
        "Job",
        of_container(lambda c: c["livenessProbe"].update(failureThreshold=3)),
    ),
    (
        settings.each_index_has_an_identity,
        "cpu",
        "Job",
        of_spec(lambda s: s.update(completions=5)),
    ),
    (
        settings.each_index_has_an_identity,
        "cpu",
        "Job",
        of_container(lambda c: [mount.pop("subPathExpr", None) for mount in c["volumeMounts"]]),
    ),
]


@pytest.mark.parametrize(
    ("check", "name", "kind", "mistake"),
    MISTAKES,
    ids=[f"{check.__name__}-{number}" for number, (check, *_) in enumerate(MISTAKES)],
)
def test_a_mistake_is_found(check: Check, name: str, kind: str, mistake: Mistake) -> None:
    objects = overlay(name)
    mistake(of_kind(objects, kind)[0])
    assert check(objects) != []


def test_every_check_is_shown_a_mistake() -> None:
    shown = {check for check, *_ in MISTAKES}
    assert shown == {*hardening.CHECKS, *wiring.CHECKS, *settings.CHECKS}
