"""What the checks of manifests are for: mistakes, each with the check that has to find it."""

from __future__ import annotations

from collections.abc import Callable

from support import manifest_hardening as hardening
from support import manifest_placement as placement
from support import manifest_settings as settings
from support import manifest_wiring as wiring
from support.deploy_tools import Object
from support.manifest_checks import Check
from support.manifests import containers, pod_of

__all__ = ["MISTAKES", "Mistake"]

Mistake = Callable[[Object], None]
"""changes one object for the worse; one that it empties is gone"""


def of_pod(change: Callable[[Object], object]) -> Mistake:
    return lambda found: change(pod_of(found)) and None


def of_container(change: Callable[[Object], object]) -> Mistake:
    return lambda found: change(containers(found)[0]) and None


def of_spec(change: Callable[[Object], object]) -> Mistake:
    return lambda found: change(found["spec"]) and None


def variable(name: str, value: str) -> Mistake:
    def change(found: Object) -> None:
        without(name)(found)
        containers(found)[0]["env"].append({"name": name, "value": value})

    return change


def without(name: str) -> Mistake:
    def change(found: Object) -> None:
        variables = containers(found)[0]["env"]
        variables[:] = [each for each in variables if each["name"] != name]

    return change


ANYBODY = {"ipBlock": {"cidr": "0.0.0.0/0"}}
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
        hardening.containers_are_probed,
        "cpu",
        "Job",
        of_container(lambda c: c.pop("readinessProbe")),
    ),
    (
        hardening.containers_are_probed,
        "cpu",
        "Job",
        of_container(lambda c: c.pop("livenessProbe")),
    ),
    (
        hardening.containers_are_probed,
        "cpu",
        "StatefulSet",
        of_container(lambda c: c.pop("livenessProbe")),
    ),
    (
        hardening.containers_are_probed,
        "cpu",
        "StatefulSet",
        of_container(lambda c: c.pop("startupProbe")),
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
        wiring.policies_name_whom_they_let_through,
        "cpu",
        "NetworkPolicy fedlora-worker",
        of_spec(lambda s: s["egress"][0]["to"].append(ANYBODY)),
    ),
    (
        wiring.policies_name_whom_they_let_through,
        "cpu",
        "NetworkPolicy fedlora-worker",
        of_spec(lambda s: s["egress"].append({})),
    ),
    (
        wiring.policies_name_whom_they_let_through,
        "party",
        "NetworkPolicy fedlora-party",
        of_spec(lambda s: s["egress"][1]["to"][0].pop("podSelector")),
    ),
    (
        wiring.policies_name_whom_they_let_through,
        "cpu",
        "NetworkPolicy fedlora-aggregator",
        of_spec(lambda s: s["ingress"][0]["from"].append(ANYBODY)),
    ),
    (
        wiring.policies_name_whom_they_let_through,
        "monitoring",
        "NetworkPolicy fedlora-metrics",
        of_spec(lambda s: s["ingress"][0]["from"][0].update(namespaceSelector={})),
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
        settings.services_prove_who_they_are,
        "cpu",
        "StatefulSet",
        without("FEDLORA_SERVER__IDENTITY_DIR"),
    ),
    (
        settings.services_prove_who_they_are,
        "cpu",
        "StatefulSet",
        variable("FEDLORA_SERVER__INSECURE", "true"),
    ),
    (settings.services_prove_who_they_are, "cpu", "Job", without("FEDLORA_WORKER__IDENTITY_DIR")),
    (
        settings.services_prove_who_they_are,
        "party",
        "Deployment",
        variable("FEDLORA_WORKER__INSECURE", "true"),
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
        settings.stops_are_long_enough,
        "cpu",
        "Job",
        of_pod(lambda p: p.update(terminationGracePeriodSeconds=12)),
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
    (
        placement.names_belong_to_one_process,
        "cpu",
        "StatefulSet",
        of_spec(lambda s: s.update(replicas=2)),
    ),
    (
        placement.names_belong_to_one_process,
        "party",
        "Deployment",
        of_spec(lambda s: s.pop("strategy")),
    ),
    (
        placement.names_belong_to_one_process,
        "cpu",
        "Job",
        of_spec(lambda s: s.pop("completionMode")),
    ),
    (
        placement.workers_are_spread,
        "cpu",
        "Job",
        of_pod(lambda p: p.pop("topologySpreadConstraints")),
    ),
    (placement.drains_leave_a_quorum, "cpu", "PodDisruptionBudget", lambda found: found.clear()),
    (
        placement.drains_leave_a_quorum,
        "cpu",
        "PodDisruptionBudget",
        of_spec(lambda s: s.update(minAvailable=4)),
    ),
    (
        placement.devices_are_asked_for,
        "gpu",
        "Job",
        of_container(lambda c: c["resources"]["limits"].pop("nvidia.com/gpu")),
    ),
    (
        placement.devices_are_asked_for,
        "gpu",
        "StatefulSet",
        variable("FEDLORA_SERVER__DEVICE", "cpu"),
    ),
]
"""check, overlay, kind or title of the object, and what is done to it"""
