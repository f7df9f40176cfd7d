"""Is every pod confined? Each check says what is missing, in sentences; none is good."""

from __future__ import annotations

from importlib.util import find_spec

from support.deploy_tools import Object
from support.manifests import containers, pod_of, title, workloads

IMAGES_USER = 10001
"""the user that the images are built for (docker/*.Dockerfile)"""

PROBES = {
    "StatefulSet": ("startupProbe", "readinessProbe", "livenessProbe"),
    "Job": ("readinessProbe", "livenessProbe"),
    "Deployment": ("readinessProbe",),
}
"""a party waits for its server for ever: silence does not end it"""


def pods_are_confined(objects: list[Object]) -> list[str]:
    """No root, no token, no variables of Services, and a way to hear SIGTERM."""
    wanted = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": True,
    }
    wanted_security = {
        "runAsNonRoot": True,
        "runAsUser": IMAGES_USER,
        "runAsGroup": IMAGES_USER,
        "fsGroup": IMAGES_USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return [
        f"{title(workload)}: {name} must be {value}, is {given.get(name)}"
        for workload in workloads(objects)
        for given, names in (
            (pod_of(workload), wanted),
            (pod_of(workload).get("securityContext", {}), wanted_security),
        )
        for name, value in names.items()
        if given.get(name) != value
    ]


def containers_are_confined(objects: list[Object]) -> list[str]:
    """A read-only root, no capability, no way to get any."""
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return [
        f"{title(workload)}: securityContext of {container['name']} must be {wanted}"
        for workload in workloads(objects)
        for container in containers(workload)
        if container.get("securityContext") != wanted
    ]


def containers_are_bounded(objects: list[Object]) -> list[str]:
    """Every container says what it needs and what it may have at most."""
    return [
        f"{title(workload)}: {container['name']} has no {kind} of {resource}"
        for workload in workloads(objects)
        for container in containers(workload)
        for kind in ("requests", "limits")
        for resource in ("cpu", "memory")
        if resource not in container.get("resources", {}).get(kind, {})
    ]


def scratch_is_bounded(objects: list[Object]) -> list[str]:
    """An emptyDir without a limit can fill its node's disk."""
    return [
        f"{title(workload)}: the emptyDir {volume['name']} has no sizeLimit"
        for workload in workloads(objects)
        for volume in pod_of(workload)["volumes"]
        if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]
    ]


def commands_need_no_shell(objects: list[Object]) -> list[str]:
    """The images have no shell: what is run and what is probed are modules of ours."""
    return [
        f"{title(workload)}: {command} must be `python -m` and a module of ours"
        for workload in workloads(objects)
        for container in containers(workload)
        for command in [
            container.get("command", []),
            *(
                probe["exec"]["command"]
                for name, probe in container.items()
                if name.endswith("Probe") and "exec" in probe
            ),
        ]
        if command[:2] != ["python", "-m"] or not find_spec(command[2])
    ]


def containers_are_probed(objects: list[Object]) -> list[str]:
    """Somebody asks whether a container has started, is of use, and lives."""
    return [
        f"{title(workload)}: {container['name']} has no {probe}"
        for workload in workloads(objects)
        for container in containers(workload)
        for probe in PROBES[workload["kind"]]
        if probe not in container
    ]


CHECKS = [
    pods_are_confined,
    containers_are_confined,
    containers_are_bounded,
    scratch_is_bounded,
    commands_need_no_shell,
    containers_are_probed,
]
