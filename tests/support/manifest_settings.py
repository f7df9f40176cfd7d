"""Do the manifests say what the services read? Each check loads the real configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from support.deploy_tools import ROOT, Object
from support.manifests import (
    bytes_of,
    container_ports,
    containers,
    environment,
    of_kind,
    pod_of,
    title,
    workloads,
)

from aggregator_service.config import AggregatorConfig
from aggregator_service.transport.server import ALIVE
from client_worker.app import GOODBYE_SECONDS
from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from fedlora.config import load_config
from fedlora.errors import FedLoraError
from fedlora.rpc.channel import STREAM_WINDOW_BYTES

QUICKSTART = ROOT / "examples" / "quickstart.toml"
PROCESS_BYTES = 512 * 1024**2
"""of an aggregator without work, and to spare: docs/docker.md has 300 MB"""


def server_settings(container: Object) -> AggregatorConfig:
    """What the aggregator reads in that container."""
    services = {"server": AggregatorConfig}
    config = load_config(QUICKSTART, services=services, environ=environment(container))
    return config.build("server", AggregatorConfig)


def worker_settings(container: Object, index: int = 0) -> WorkerConfig:
    """What a worker reads in that container."""
    services = {"worker": WorkerConfig, "data": DataConfig}
    config = load_config(QUICKSTART, services=services, environ=environment(container, index))
    return config.build("worker", WorkerConfig, data=config.build("data", DataConfig))


def settings_of(container: Object) -> AggregatorConfig | WorkerConfig:
    """What the service in that container reads."""
    if container["command"][-1] == "aggregator_service":
        return server_settings(container)
    return worker_settings(container)


def variables_are_keys(objects: list[Object]) -> list[str]:
    """Every FEDLORA_ variable is a key with a value that it may have."""
    found = []
    for workload in workloads(objects):
        for container in containers(workload):
            try:
                settings_of(container)
            except FedLoraError as error:
                found.append(f"{title(workload)}: {error}")
    return found


def addresses_are_ports(objects: list[Object]) -> list[str]:
    """What a container listens on is what its pod says, and a probe asks the health address."""
    found = []
    for workload in workloads(objects):
        (container,) = containers(workload)
        settings = settings_of(container)
        if isinstance(settings, AggregatorConfig):
            served = {
                "grpc": settings.address,
                "health": settings.health_address,
                "enrolment": settings.enrolment_address,
                "metrics": settings.metrics_address,
            }
        else:
            served = {"metrics": settings.metrics_address}
        wanted = {name: _port(address) for name, address in served.items() if address}
        if container_ports(workload) != wanted:
            found.append(f"{title(workload)}: serves {wanted}, says {container_ports(workload)}")
        for name, probe in container.items():
            asked = {"port": wanted.get("health")}
            if name == "livenessProbe":
                asked["service"] = ALIVE
            if name.endswith("Probe") and probe.get("grpc", asked) != asked:
                found.append(f"{title(workload)}: {name} must ask {asked}, asks {probe['grpc']}")
    return found


def services_prove_who_they_are(objects: list[Object]) -> list[str]:
    """Both sides show a certificate, and neither was told to do without."""
    found = []
    for workload in workloads(objects):
        settings = settings_of(containers(workload)[0])
        if settings.identity_dir is None:
            found.append(f"{title(workload)}: has no identity")
        if settings.insecure:
            found.append(f"{title(workload)}: is told to talk in plain text")
    return found


def workers_call_the_service(objects: list[Object]) -> list[str]:
    """A worker's server is a Service of ours, where the overlay has one."""
    services = {
        f"{service['metadata']['name']}:{port['port']}"
        for service in of_kind(objects, "Service")
        for port in service["spec"]["ports"]
    }
    return [
        f"{title(workload)}: calls {settings.server}, not one of {sorted(services)}"
        for workload in workloads(objects)
        if services
        and isinstance(settings := settings_of(containers(workload)[0]), WorkerConfig)
        and settings.server not in services
    ]


def files_are_mounted(objects: list[Object]) -> list[str]:
    """What a service reads or writes lies on a volume, and on a writable one if it writes."""
    found = []
    for workload in workloads(objects):
        (container,) = containers(workload)
        settings = settings_of(container)
        mounts = {
            PurePosixPath(mount["mountPath"]): mount.get("readOnly", False)
            for mount in container["volumeMounts"]
        }
        read, written = _files(settings)
        read.append(environment(container)["FEDLORA_CONFIG"])
        for file in (*read, *written):
            above = [mounts[folder] for folder in _upwards(file) if folder in mounts]
            if not above:
                found.append(f"{title(workload)}: {file} is on no volume")
            elif file in written and above[0]:
                found.append(f"{title(workload)}: {file} is written, on a read-only volume")
    return found


def bounds_fit_the_limits(objects: list[Object]) -> list[str]:
    """No service takes a share of its whole node for what its container may have."""
    found = []
    for workload in workloads(objects):
        (container,) = containers(workload)
        settings, limits = settings_of(container), container["resources"]["limits"]
        if isinstance(settings, AggregatorConfig):
            threads = int(environment(container)["OMP_NUM_THREADS"])
            taken = settings.memory_bytes + settings.max_uploads * STREAM_WINDOW_BYTES
            # On a GPU combining takes the device's memory, and uploads are few beside the host's.
            if settings.device == "cpu" and (
                not settings.memory_bytes
                or not settings.max_uploads
                or taken + PROCESS_BYTES > bytes_of(limits["memory"])
            ):
                found.append(f"{title(workload)}: may take {taken} bytes of {limits['memory']}")
        else:
            threads = settings.threads
        if not 0 < threads <= int(limits["cpu"]):
            found.append(f"{title(workload)}: {threads} threads on {limits['cpu']} CPUs")
    return found


def stops_are_long_enough(objects: list[Object]) -> list[str]:
    """A pod may take longer to stop than its service takes."""
    found = []
    for workload in workloads(objects):
        settings = settings_of(containers(workload)[0])
        drain = (
            settings.shutdown_grace_seconds
            if isinstance(settings, AggregatorConfig)
            else GOODBYE_SECONDS
        )
        if pod_of(workload)["terminationGracePeriodSeconds"] <= drain:
            found.append(f"{title(workload)}: is killed within its grace of {drain:g} s")
    return found


def patience_outlasts_the_server(objects: list[Object]) -> list[str]:
    """No worker is killed for its server's absence before it gives up itself."""
    found = []
    for workload in workloads(objects):
        (container,) = containers(workload)
        settings, probe = settings_of(container), container.get("livenessProbe")
        if isinstance(settings, AggregatorConfig) or probe is None:
            continue
        silence = probe["periodSeconds"] * probe["failureThreshold"]
        if silence <= settings.wait_for_server_seconds or not settings.wait_for_server_seconds:
            found.append(f"{title(workload)}: is killed after {silence} s without its server")
    return found


def each_index_has_an_identity(objects: list[Object]) -> list[str]:
    """Pod k is worker-k and sees the Secret of worker-k alone; there are enough for a round."""
    found = []
    run = load_config(QUICKSTART, services={}, environ={}).run
    assert run is not None
    for job in of_kind(objects, "Job"):
        (container,) = containers(job)
        count = job["spec"]["completions"]
        (volume,) = (v for v in pod_of(job)["volumes"] if v["name"] == "identities")
        folders = {
            f"worker-{item['path'].partition('/')[0]}": (source["secret"]["name"], item["key"])
            for source in volume["projected"]["sources"]
            for item in source["secret"]["items"]
            if item["path"].endswith("/tls.key")
        }
        names = {worker_settings(container, index).name for index in range(count)}
        if folders != {name: (f"fedlora-{name}", "tls.key") for name in names}:
            found.append(f"{title(job)}: {sorted(names)} do not find their identities: {folders}")
        (mount,) = (m for m in container["volumeMounts"] if m["name"] == "identities")
        if mount.get("subPathExpr") != "$(WORKER_INDEX)":
            found.append(f"{title(job)}: a pod sees the identities of others")
        if not count >= run.rounds.min_workers:
            found.append(f"{title(job)}: {count} workers, a round wants {run.rounds.min_workers}")
    return found


CHECKS = [
    variables_are_keys,
    addresses_are_ports,
    services_prove_who_they_are,
    workers_call_the_service,
    files_are_mounted,
    bounds_fit_the_limits,
    stops_are_long_enough,
    patience_outlasts_the_server,
    each_index_has_an_identity,
]


def _files(settings: AggregatorConfig | WorkerConfig) -> tuple[list[str], list[str]]:
    """What it reads, and what it writes."""
    if isinstance(settings, AggregatorConfig):
        read = [settings.identity_dir, settings.authority_dir]
        written = [settings.state_dir, settings.export_dir]
    else:
        read, written = [settings.data.path], [settings.cache_dir, settings.alive_file]
        # A worker that is invited makes its identity itself.
        (written if settings.invitation else read).append(settings.identity_dir)
        read.append(settings.invitation)
    return [str(f) for f in read if f is not None], [str(f) for f in written if f is not None]


def _upwards(file: str) -> Iterator[PurePosixPath]:
    yield PurePosixPath(file)
    yield from PurePosixPath(file).parents


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])
