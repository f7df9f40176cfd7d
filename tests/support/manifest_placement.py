"""Are there as many pods as there may be, where they should be? Each check says what is wrong."""

from __future__ import annotations

from support.deploy_tools import Object
from support.manifest_settings import QUICKSTART, settings_of
from support.manifests import containers, labels_of, of_kind, pod_of, selected, title, workloads

from fedlora.config import load_config


def names_belong_to_one_process(objects: list[Object]) -> list[str]:
    """One aggregator to a state, one worker to a name, the old one gone before a new one comes."""
    found = []
    for workload in workloads(objects):
        kind, spec = workload["kind"], workload["spec"]
        wanted: Object = {
            "StatefulSet": {"replicas": 1},
            "Deployment": {"replicas": 1, "strategy": {"type": "Recreate"}},
            "Job": {
                "completionMode": "Indexed",
                "parallelism": spec.get("completions"),
                "podReplacementPolicy": "Failed",
            },
        }[kind]
        found += [
            f"{title(workload)}: {name} must be {value}, is {spec.get(name)}"
            for name, value in wanted.items()
            if spec.get(name) != value
        ]
    return found


def workers_are_spread(objects: list[Object]) -> list[str]:
    """The workers of a run lie on different nodes where they can, and no node takes all of them."""
    return [
        f"{title(job)}: its pods are not spread over nodes"
        for job in of_kind(objects, "Job")
        if not any(
            spread["topologyKey"] == "kubernetes.io/hostname"
            and spread["maxSkew"] == 1
            and spread["labelSelector"]["matchLabels"] == labels_of(job)
            for spread in pod_of(job).get("topologySpreadConstraints", [])
        )
    ]


def drains_leave_a_quorum(objects: list[Object]) -> list[str]:
    """Nodes can be drained, and a round keeps the updates that it needs."""
    found = []
    run = load_config(QUICKSTART, services={}, environ={}).run
    assert run is not None
    budgets = of_kind(objects, "PodDisruptionBudget")
    for job in of_kind(objects, "Job"):
        count = job["spec"]["completions"]
        own = [each for each in budgets if job in selected(each["spec"]["selector"], objects)]
        if len(own) != 1:
            found.append(f"{title(job)}: {len(own)} budgets are for its pods, not one")
        for budget in own:
            if not run.rounds.quorum <= budget["spec"]["minAvailable"] < count:
                found.append(f"{title(budget)}: no node can be drained, or a round stands still")
    return found


def devices_are_asked_for(objects: list[Object]) -> list[str]:
    """What computes on a GPU is given one, and what does not takes none from others."""
    found = []
    for workload in workloads(objects):
        (container,) = containers(workload)
        limits = container.get("resources", {}).get("limits", {})
        given = {name: n for name, n in limits.items() if name.startswith("nvidia.com/")}
        device = settings_of(container).device
        if list(given.values()) != (["1"] if device.startswith("cuda") else []):
            found.append(f"{title(workload)}: works on {device} and is given {given}")
    return found


CHECKS = [
    names_belong_to_one_process,
    workers_are_spread,
    drains_leave_a_quorum,
    devices_are_asked_for,
]
