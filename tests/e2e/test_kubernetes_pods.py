"""The pods of deploy/kubernetes as containers: a federation in them, confined as in a cluster."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.compose import ROOT, missing_engine
from support.compose_federation import CONFIG
from support.compose_federation import RUN as RUN_NAME
from support.deploy_tools import Object, missing_tools
from support.identities import Federation as Members
from support.identities import names
from support.images import IMAGES, build
from support.manifests import of_kind, overlay, pod_of
from support.pods import Cluster, Container, docker
from support.waiting import until

from fedlora.identity.names import AccessRole

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
        members = Members(folder / "federation", "fedlora")
        make_secrets(cluster, members)
        aggregator = cluster.run(
            stateful_set, image=images["aggregator"], alias=SERVICE, forwarded=8400
        )
        aggregator.wait_until_started()
        invitation = invite("party", aggregator.forwarded(8400), members)
        cluster.keep("secret", "fedlora-invitation", {"invitation.json": invitation})
        party = cluster.run(deployment, image=images["worker"])
        workers = tuple(cluster.run(job, image=images["worker"], index=index) for index in WORKERS)
        for worker in (*workers, party):
            worker.wait_until_started()
        yield Federation(cluster, images, stateful_set, job, aggregator, workers, party)
    docker("image", "rm", "--force", *images.values())


def make_secrets(cluster: Cluster, members: Members) -> None:
    """What docs/kubernetes.md has its reader make, for a small run."""
    server = members.member(AccessRole.SERVER, "aggregator", hosts=(SERVICE, "localhost"))
    cluster.keep("secret", SERVICE, files_of(server))
    for index in range(4):
        worker = members.member(AccessRole.WORKER, f"worker-{index}")
        cluster.keep("secret", f"fedlora-worker-{index}", files_of(worker))
    authority = files_of(members.authority_dir)
    pair = {"tls.crt": authority["ca.crt"], "tls.key": authority["ca.key"]}
    cluster.keep("secret", "fedlora-authority", pair)
    run = CONFIG.format(num_rounds=2).replace("[rounds]", "[rounds]\nmin_workers = 3\nquorum = 3")
    cluster.keep("configMap", "fedlora-run", {"run.toml": run.encode()})
    examples = (ROOT / "examples" / "data" / "debian_sections.jsonl").read_bytes()
    cluster.keep("configMap", "fedlora-examples", {"examples.jsonl": examples})


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def invite(name: str, server: str, members: Members) -> bytes:
    """`fedlora pki token`, as an operator calls it through a forwarded port."""
    operator, out = members.member(AccessRole.OPERATOR, "operator"), members.root / f"{name}.json"
    subprocess.run(
        [sys.executable, "-m", "fedlora_cli", "--identity-dir", operator,
         "pki", "token", name, "--server", server, "--enrolment", f"{SERVICE}:8401",
         "--out", out],
        check=True,
    )  # fmt: skip
    return out.read_bytes()


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
    assert names(key.parent).name == "party"


async def test_a_probe_fails_where_there_is_something_to_find(federation: Federation) -> None:
    worker = federation.workers[0]

    def fails() -> bool:
        worker.python("import os; os.utime('/tmp/alive', (0, 0))")
        return "last answer" in worker.probe("readinessProbe")

    # The server may answer the worker between the two.
    await until(fails, seconds=60)


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
