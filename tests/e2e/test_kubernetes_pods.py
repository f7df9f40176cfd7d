"""The pods of deploy/kubernetes as containers: a federation in them, confined as in a cluster."""

from __future__ import annotations

import datetime as dt
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.compose import ROOT, missing_engine
from support.compose_federation import CONFIG
from support.compose_federation import RUN as RUN_NAME
from support.deploy_tools import Object, missing_tools
from support.images import IMAGES, build
from support.manifests import of_kind, overlay, pod_of
from support.pods import Cluster, Container, docker

from fedlora.identity.certificates import (
    Authority,
    key_to_pem,
    new_authority,
    new_key,
    to_pem,
)
from fedlora.identity.folder import read_identity, write_identity
from fedlora.identity.names import AccessRole, Identity

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(missing_engine()), reason=f"no Docker engine: {missing_engine()}"),
    pytest.mark.skipif(bool(missing_tools()), reason=missing_tools()),
]

SERVICE = "fedlora-aggregator"
WORKERS = (0, 1)
"""indexes of the Job's pods that are run; all of them have one template"""


@dataclass(frozen=True)
class Federation:
    """An aggregator that serves, two workers of the Job and a party that was invited."""

    cluster: Cluster
    images: dict[str, str]
    stateful_set: Object
    job: Object
    aggregator: Container
    workers: tuple[Container, ...]
    party: Container


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("cluster")
    folder.chmod(0o755)
    images = {image: build(image) for image in IMAGES}
    objects = overlay("gateway")
    (stateful_set,), (job,) = of_kind(objects, "StatefulSet"), of_kind(objects, "Job")
    (deployment,) = of_kind(overlay("party"), "Deployment")
    with Cluster(f"fedlora-pods-{folder.name}", folder) as cluster:
        make_secrets(cluster, folder)
        aggregator = cluster.run(
            stateful_set, image=images["aggregator"], alias=SERVICE, forwarded=8400
        )
        aggregator.wait_until_started()
        invitation = invite("party", aggregator.forwarded(8400), folder)
        cluster.keep("secret", "fedlora-invitation", {"invitation.json": invitation})
        party = cluster.run(deployment, image=images["worker"])
        workers = tuple(cluster.run(job, image=images["worker"], index=index) for index in WORKERS)
        for worker in (*workers, party):
            worker.wait_until_started()
        yield Federation(cluster, images, stateful_set, job, aggregator, workers, party)
    docker("image", "rm", "--force", *images.values())


def make_secrets(cluster: Cluster, folder: Path) -> None:
    """What docs/kubernetes.md has its reader make, for a small run."""
    authority = new_authority("fedlora", now=dt.datetime.now(dt.UTC), days=1)
    authority_files = {
        "tls.crt": to_pem(authority.certificate),
        "tls.key": key_to_pem(authority.key),
    }
    cluster.keep("secret", "fedlora-authority", authority_files)
    operator = Identity(federation="fedlora", role=AccessRole.OPERATOR, name="operator")
    keep_identity(cluster, folder, authority, "operator", operator)
    server = Identity(federation="fedlora", role=AccessRole.SERVER, name="aggregator")
    keep_identity(cluster, folder, authority, SERVICE, server, [SERVICE, "localhost"])
    for index in range(4):
        worker = Identity(federation="fedlora", role=AccessRole.WORKER, name=f"worker-{index}")
        keep_identity(cluster, folder, authority, f"fedlora-worker-{index}", worker)
    run = CONFIG.format(num_rounds=2).replace("[rounds]", "[rounds]\nmin_workers = 3\nquorum = 3")
    cluster.keep("configMap", "fedlora-run", {"run.toml": run.encode()})
    examples = (ROOT / "examples" / "data" / "debian_sections.jsonl").read_bytes()
    cluster.keep("configMap", "fedlora-examples", {"examples.jsonl": examples})


def keep_identity(
    cluster: Cluster,
    folder: Path,
    authority: Authority,
    secret: str,
    identity: Identity,
    hosts: list[str] | None = None,
) -> None:
    key = new_key()
    certificate = authority.issue(
        identity, key.public_key(), now=dt.datetime.now(dt.UTC), days=1, hosts=hosts or []
    )
    write_identity(
        folder / secret,
        authorities_pem=to_pem(authority.certificate),
        certificates_pem=to_pem(certificate),
        key=key,
    )
    files = {file.name: file.read_bytes() for file in (folder / secret).iterdir()}
    cluster.keep("secret", secret, files)


def invite(name: str, server: str, folder: Path) -> bytes:
    """`fedlora pki token`, as an operator calls it through a forwarded port."""
    subprocess.run(
        [sys.executable, "-m", "fedlora_cli", "--identity-dir", folder / "operator",
         "pki", "token", name, "--server", server, "--enrolment", f"{SERVICE}:8401",
         "--out", folder / "invitation.json"],
        check=True,
    )  # fmt: skip
    return (folder / "invitation.json").read_bytes()


def test_every_probe_is_content(federation: Federation) -> None:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert federation.aggregator.probe(probe) == ""
    for worker in federation.workers:
        for probe in ("readinessProbe", "livenessProbe"):
            assert worker.probe(probe) == ""
    assert federation.party.probe("readinessProbe") == ""


def test_every_container_is_confined(federation: Federation) -> None:
    for container in (federation.aggregator, *federation.workers, federation.party):
        assert container.python("import os; print(os.getuid(), os.getgid())") == "10001 10001"
        status = dict(
            line.split(":\t", 1)
            for line in container.python("print(open('/proc/1/status').read())").splitlines()
            if ":\t" in line
        )
        assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        for folder, error in (("/app", "Read-only file system"), ("/config", "Read-only")):
            write = f"open('{folder}/planted', 'w')"
            told = container.python(f"try: {write}\nexcept OSError as error: print(error)")
            assert error in told


def test_a_pod_has_its_own_identity_and_no_others(federation: Federation) -> None:
    find = (
        "import pathlib\n"
        "from fedlora.identity.folder import read_identity\n"
        "import time\n"
        "print(read_identity(pathlib.Path('/identity'), now=time.time()).identity.name)\n"
        "print(*sorted(str(p) for p in pathlib.Path('/').glob('identit*/**/*.key')))"
    )
    for index, worker in zip(WORKERS, federation.workers, strict=True):
        assert worker.python(find).split() == [f"worker-{index}", "/identity/tls.key"]


def test_a_party_keeps_the_identity_that_it_made(federation: Federation) -> None:
    claim = federation.cluster.claim(of_kind(overlay("party"), "Deployment")[0], "worker")
    key = claim / "identity" / "tls.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert read_identity(key.parent, now=time.time()).identity.name == "party"


def test_a_probe_fails_where_there_is_something_to_find(federation: Federation) -> None:
    worker = federation.workers[0]
    worker.python("import os; os.utime('/tmp/alive', (0, 0))")
    assert "last answer" in worker.probe("readinessProbe")


def test_the_run_ends_and_its_results_leave_the_container(
    federation: Federation, tmp_path: Path
) -> None:
    for worker in (*federation.workers, federation.party):
        assert worker.wait_until_ended(timeout=900) == 0
    name = federation.aggregator.name
    run = unpacked(archive(name, "pack", f"/data/runs/{RUN_NAME}"), tmp_path / "run")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        file.name for file in (run / "final").iterdir()
    }


def test_a_backup_is_made_taken_out_brought_back_and_served(federation: Federation) -> None:
    pod, claim = federation.aggregator, "/data"
    docker("exec", pod.name, "python", "-m", "aggregator_service.backup",
           f"{claim}/state", f"{claim}/backups/today")  # fmt: skip
    backup = archive(pod.name, "pack", f"{claim}/backups/today")
    archive(pod.name, "unpack", f"{claim}/restored", backup)
    grace = pod_of(federation.stateful_set)["terminationGracePeriodSeconds"]
    assert pod.stop(grace) == 0
    restored = next(each for each in of_kind(overlay("gateway"), "StatefulSet"))
    for variable in pod_of(restored)["containers"][0]["env"]:
        if variable["name"] == "FEDLORA_SERVER__STATE_DIR":
            variable["value"] = f"{claim}/restored"
    again = federation.cluster.run(restored, image=federation.images["aggregator"], alias=SERVICE)
    again.wait_until_started()
    # Workers that come back, one of them without its invitation, are told that the run is over.
    late = [federation.cluster.run(federation.job, image=federation.images["worker"], index=0)]
    (deployment,) = of_kind(overlay("party"), "Deployment")
    late.append(federation.cluster.run(deployment, image=federation.images["worker"]))
    for worker in late:
        assert worker.wait_until_ended(timeout=300) == 0


def archive(container: str, way: str, folder: str, given: bytes = b"") -> bytes:
    done = subprocess.run(
        ["docker", "exec", "-i", container, "python", "-m", "aggregator_service.archive",
         way, folder],
        input=given, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def unpacked(packed: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(packed)) as found:
        found.extractall(folder, filter="data")
    return folder
