"""Manifests as tests read them: workloads, their pods and containers, and what selects them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from support.deploy_tools import CHART, KUSTOMIZE, Object, kustomized

OVERLAYS = sorted(folder.name for folder in (KUSTOMIZE / "overlays").iterdir())
WORKLOADS = ("StatefulSet", "Job", "Deployment")


@functools.cache
def _rendered(name: str) -> str:
    return yaml.safe_dump_all(kustomized(KUSTOMIZE / "overlays" / name))


def overlay(name: str) -> list[Object]:
    """An overlay's objects, the caller's own to change."""
    return list(yaml.safe_load_all(_rendered(name)))


def values_of(name: str) -> Object:
    """The chart's values that make what an overlay makes; cpu is the default."""
    if name == "cpu":
        return {}
    values: Object = yaml.safe_load((CHART / f"values-{name}.yaml").read_text())
    return values


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    return [found for found in objects if found["kind"] in kinds]


def title(found: Object) -> str:
    """Kind and name, for what a test says."""
    return f"{found['kind']} {found['metadata']['name']}"


def is_of_the_api(found: Object) -> bool:
    """Whether Kubernetes itself has the kind; others come with cert-manager, a gateway, …"""
    group = found["apiVersion"].rpartition("/")[0]
    return "." not in group or (group.endswith(".k8s.io") and not group.startswith("gateway."))


def workloads(objects: list[Object]) -> list[Object]:
    return of_kind(objects, *WORKLOADS)


def pod_of(workload: Object) -> Object:
    """The specification of a workload's pods."""
    pod: Object = workload["spec"]["template"]["spec"]
    return pod


def labels_of(workload: Object) -> Mapping[str, str]:
    """The labels of a workload's pods."""
    labels: Mapping[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def containers(workload: Object) -> list[Object]:
    pod = pod_of(workload)
    return [*pod.get("initContainers", []), *pod["containers"]]


def container_ports(workload: Object) -> dict[str, int]:
    """Ports of a workload's pods by name."""
    return {
        port["name"]: port["containerPort"]
        for container in containers(workload)
        for port in container.get("ports", [])
    }


def selected(selector: Mapping[str, Any], objects: list[Object]) -> list[Object]:
    """The workloads whose pods a label selector takes."""
    wanted = selector.get("matchLabels", selector).items()
    return [found for found in workloads(objects) if wanted <= labels_of(found).items()]


def environment(container: Object, index: int = 0) -> dict[str, str]:
    """What a container finds in its environment; of an Indexed Job, the pod of that index."""
    found: dict[str, str] = {}
    for variable in container.get("env", []):
        value = variable.get("value", str(index))
        for name, earlier in found.items():
            value = value.replace(f"$({name})", earlier)
        found[variable["name"]] = value
    return found


def bytes_of(quantity: str) -> int:
    """A quantity of memory or disk, such as 2Gi."""
    return int(quantity[:-2]) * {"Mi": 1024**2, "Gi": 1024**3}[quantity[-2:]]


def volume_names(workload: Object) -> set[str]:
    """Names of the volumes that a workload's pods have."""
    claims = workload["spec"].get("volumeClaimTemplates", [])
    return {volume["name"] for volume in pod_of(workload)["volumes"]} | {
        claim["metadata"]["name"] for claim in claims
    }


def peers(policy: Object) -> Iterator[tuple[Object, list[int]]]:
    """The pod selectors that a policy lets through, each with its ports."""
    for way, side in (("ingress", "from"), ("egress", "to")):
        for rule in policy["spec"].get(way, []):
            ports = [port["port"] for port in rule["ports"]]
            for peer in rule[side]:
                if "podSelector" in peer:
                    yield peer["podSelector"], ports
