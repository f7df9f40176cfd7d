"""Do the objects of an overlay find one another? Each check says what does not; none is good."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from support.deploy_tools import Object
from support.manifests import (
    container_ports,
    containers,
    of_kind,
    peers,
    pod_of,
    selected,
    title,
    volume_names,
    workloads,
)

MADE_BY_HAND = {
    "ConfigMap": {"fedlora-run", "fedlora-examples"},
    "Secret": {"fedlora-aggregator", "fedlora-authority", "fedlora-invitation"}
    | {f"fedlora-worker-{index}" for index in range(4)},
}
"""what docs/kubernetes.md has its reader make"""

OUR_PEERS = {
    way: [
        {"app.kubernetes.io/name": "fedlora", "app.kubernetes.io/component": component}
        for component in components
    ]
    for way, components in (("ingress", ("worker", "party")), ("egress", ("aggregator",)))
}
"""pods that a policy may let in to the aggregator, or lets workers out to"""

DNS = {
    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
    "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
}


def selectors_match(objects: list[Object]) -> list[str]:
    """A workload's selector takes its own pods and no other's; a Service's and a budget's, some."""
    found = []
    for workload in workloads(objects):
        selector = workload["spec"].get("selector")
        if selector is not None and selected(selector, objects) != [workload]:
            found.append(f"{title(workload)}: its selector takes other pods than its own")
        for spread in pod_of(workload).get("topologySpreadConstraints", []):
            if not selected(spread["labelSelector"], [workload]):
                found.append(f"{title(workload)}: it is spread over pods of others")
    for user in of_kind(objects, "Service", "PodDisruptionBudget"):
        if len(selected(user["spec"]["selector"], objects)) != 1:
            found.append(f"{title(user)}: its selector takes no workload, or several")
    return found


def volumes_are_there(objects: list[Object]) -> list[str]:
    """A mount has its volume, a volume its mount, and a claim its object."""
    found = []
    claims = {claim["metadata"]["name"] for claim in of_kind(objects, "PersistentVolumeClaim")}
    for workload in workloads(objects):
        mounted = {
            mount["name"]
            for container in containers(workload)
            for mount in container["volumeMounts"]
        }
        if mounted != volume_names(workload):
            odd = sorted(mounted ^ volume_names(workload))
            found.append(f"{title(workload)}: {odd} are volumes or mounts, not both")
        for volume in pod_of(workload)["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim is not None and claim not in claims:
                found.append(f"{title(workload)}: there is no claim {claim}")
    return found


def sources_are_documented(objects: list[Object]) -> list[str]:
    """Every Secret and ConfigMap that pods and issuers read is one that the guide makes."""
    used = {use for workload in workloads(objects) for use in _sources(workload)}
    used |= {
        ("Secret", issuer["spec"]["ca"]["secretName"]) for issuer in of_kind(objects, "Issuer")
    }
    return [
        f"{kind} {name} is nowhere made"
        for kind, name in sorted(used)
        if name not in MADE_BY_HAND[kind]
    ]


def certificates_fill_the_secrets(objects: list[Object]) -> list[str]:
    """Where cert-manager makes identities, it makes all that pods mount, for the right members."""
    certificates = of_kind(objects, "Certificate")
    if not certificates:
        return []
    issuers = {issuer["metadata"]["name"] for issuer in of_kind(objects, "Issuer")}
    found = [
        f"{title(certificate)}: there is no issuer of that name"
        for certificate in certificates
        if certificate["spec"]["issuerRef"]["name"] not in issuers
    ]
    made = {certificate["spec"]["secretName"]: certificate for certificate in certificates}
    for workload in workloads(objects):
        for kind, name in _sources(workload):
            if kind == "Secret" and name not in made:
                found.append(f"{title(workload)}: no certificate is made for {name}")
    for name, certificate in made.items():
        _, _, index = name.rpartition("-worker-")
        member = f"worker/worker-{index}" if index.isdigit() else "server/aggregator"
        if not certificate["spec"]["uris"][0].endswith(member):
            found.append(f"{title(certificate)}: {name} names {certificate['spec']['uris']}")
        usage = "client auth" if index.isdigit() else "server auth"
        if usage not in certificate["spec"]["usages"]:
            found.append(f"{title(certificate)}: is not good for {usage}")
    hosts = {host for each in certificates for host in each["spec"].get("dnsNames", [])}
    found += [
        f"{title(service)}: no certificate is for it"
        for service in of_kind(objects, "Service")
        if service["metadata"]["name"] not in hosts
    ]
    return found


def ports_agree(objects: list[Object]) -> list[str]:
    """Services, routes, monitors and policies name ports that containers have."""
    found = []
    offered: dict[str, set[int]] = {}
    for service in of_kind(objects, "Service"):
        ports = container_ports(selected(service["spec"]["selector"], objects)[0])
        offered[service["metadata"]["name"]] = {port["port"] for port in service["spec"]["ports"]}
        for port in service["spec"]["ports"]:
            if ports.get(port["targetPort"]) != port["port"]:
                found.append(f"{title(service)}: {port} is no port of its pods, {ports}")
    for route in of_kind(objects, "TLSRoute"):
        for rule in route["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                if backend["port"] not in offered.get(backend["name"], set()):
                    found.append(f"{title(route)}: {backend} is no port of a Service")
    found += _policy_ports(objects)
    return found


def nothing_is_reachable_unasked(objects: list[Object]) -> list[str]:
    """Every pod is denied all, then given what it needs; the aggregator may call nobody."""
    found = []
    policies = of_kind(objects, "NetworkPolicy")
    for workload in workloads(objects):
        denied = {
            way
            for policy in policies
            if selected(policy["spec"]["podSelector"], [workload])
            for way in policy["spec"]["policyTypes"]
        }
        if denied != {"Ingress", "Egress"}:
            found.append(f"{title(workload)}: only {sorted(denied)} is denied")
        if workload["kind"] == "StatefulSet" and any(
            "egress" in policy["spec"]
            for policy in policies
            if selected(policy["spec"]["podSelector"], [workload])
        ):
            found.append(f"{title(workload)}: the aggregator is let out")
    return found


def policies_name_whom_they_let_through(objects: list[Object]) -> list[str]:
    """In come workers, and namespaces by name; out go calls to the aggregator and to DNS."""
    found = []
    for policy in of_kind(objects, "NetworkPolicy"):
        for way, side in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(way, []):
                if not rule.get(side) or not rule.get("ports"):
                    found.append(f"{title(policy)}: a rule of {way} is for all addresses or ports")
                found += [
                    f"{title(policy)}: {way} of {peer} is more than it needs"
                    for peer in rule.get(side, [])
                    if not _is_named(peer, way, [port["port"] for port in rule.get("ports", [])])
                ]
    return found


def routes_pass_tls_on(objects: list[Object]) -> list[str]:
    """A gateway never opens TLS, and has a listener for each route's host."""
    listeners = {
        (gateway["metadata"]["name"], listener["name"]): listener
        for gateway in of_kind(objects, "Gateway")
        for listener in gateway["spec"]["listeners"]
    }
    found = [
        f"Gateway {name}: the listener {listener} opens TLS"
        for (name, listener), spec in listeners.items()
        if spec["protocol"] != "TLS" or spec["tls"] != {"mode": "Passthrough"}
    ]
    for route in of_kind(objects, "TLSRoute"):
        for parent in route["spec"]["parentRefs"]:
            listener = listeners.get((parent["name"], parent["sectionName"]), {})
            if listener.get("hostname") not in route["spec"]["hostnames"]:
                found.append(f"{title(route)}: no listener has its host")
            ports = {
                backend["port"]
                for rule in route["spec"]["rules"]
                for backend in rule["backendRefs"]
            }
            if {listener.get("port")} != ports:
                found.append(f"{title(route)}: the listener's port is not the Service's")
    return found


CHECKS = [
    selectors_match,
    volumes_are_there,
    sources_are_documented,
    certificates_fill_the_secrets,
    ports_agree,
    nothing_is_reachable_unasked,
    policies_name_whom_they_let_through,
    routes_pass_tls_on,
]


def _sources(workload: Object) -> Iterator[tuple[str, str]]:
    for volume in pod_of(workload)["volumes"]:
        for source in [volume, *volume.get("projected", {}).get("sources", [])]:
            if "configMap" in source:
                yield "ConfigMap", source["configMap"]["name"]
            if "secret" in source:
                yield "Secret", source["secret"].get("secretName") or source["secret"]["name"]


def _is_named(peer: Object, way: str, ports: list[int]) -> bool:
    if "ipBlock" in peer:
        # Of an aggregator outside the cluster: one address.
        return way == "egress" and ip_network(peer["ipBlock"]["cidr"]).num_addresses == 1
    if peer == DNS:
        return way == "egress" and set(ports) == {53}
    if "podSelector" in peer:
        return peer["podSelector"].get("matchLabels") in OUR_PEERS[way]
    named = peer["namespaceSelector"].get("matchLabels", {})
    return way == "ingress" and list(named) == ["kubernetes.io/metadata.name"]


def _policy_ports(objects: list[Object]) -> list[str]:
    found = []
    for policy in of_kind(objects, "NetworkPolicy"):
        targets = selected(policy["spec"]["podSelector"], objects)
        if not targets:
            found.append(f"{title(policy)}: it is for pods that nobody makes")
        if "ingress" in policy["spec"]:
            have = {port for target in targets for port in container_ports(target).values()}
            asked = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            if not asked <= have:
                found.append(f"{title(policy)}: lets in to {sorted(asked - have)}, served by none")
        for selector, ports in peers(policy):
            for peer in selected(selector, objects) if "egress" in policy["spec"] else []:
                closed = set(ports) - set(container_ports(peer).values())
                if closed:
                    found.append(f"{title(policy)}: lets out to {sorted(closed)} of {title(peer)}")
    return found
