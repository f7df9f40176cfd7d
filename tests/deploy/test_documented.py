"""docs/kubernetes.md can be followed: its files render, its commands make what the pods mount."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support import manifest_wiring
from support.deploy_tools import KUBECTL, ROOT, Object, kustomized, missing_tools
from support.manifest_checks import CHECKS
from support.manifests import (
    OVERLAYS,
    containers,
    environment,
    of_kind,
    overlay,
    pod_of,
    workloads,
)

from client_worker.app import GOODBYE_SECONDS

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())

GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


def rendered(text: str, folder: Path) -> list[Object]:
    """A kustomization of the guide, beside a checkout."""
    (folder / "fedlora").mkdir()
    # kustomize follows no link out of a folder.
    subprocess.run(["cp", "-r", ROOT / "deploy", folder / "fedlora"], check=True)
    (folder / "kustomization.yaml").write_text(text)
    return kustomized(folder)


def test_the_overlay_of_ones_own_is_wired(tmp_path: Path) -> None:
    text = next(block for block in blocks("yaml") if "registry.example.org" in block)
    objects = rendered(text, tmp_path)
    for check in CHECKS:
        assert check(objects) == [], check.__name__
    assert of_kind(objects, "PodMonitor")
    for workload in workloads(objects):
        (container,) = containers(workload)
        assert container["image"].startswith("registry.example.org/fedlora-")
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_party_of_another_cluster_calls_the_gateway_alone(tmp_path: Path) -> None:
    text = next(block for block in blocks("yaml") if "namespace: hospital-a" in block)
    objects = rendered(text, tmp_path)
    for check in CHECKS:
        assert check(objects) == [], check.__name__
    (party,) = of_kind(objects, "Deployment")
    variables = environment(containers(party)[0])
    assert variables["FEDLORA_WORKER__SERVER"] == "fedlora.example.org:8400"
    (policy,) = of_kind(objects, "NetworkPolicy")
    server, dns = policy["spec"]["egress"]
    assert server["to"] == [{"ipBlock": {"cidr": "192.0.2.10/32"}}]
    assert {port["port"] for port in dns["ports"]} == {53}


def patched(overlay: str, word: str, tmp_path: Path) -> list[Object]:
    """An overlay with the patches of the page that hold a word."""
    patches = next(block for block in blocks("yaml") if word in block)
    return rendered(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\n"
        f"resources: [fedlora/deploy/kubernetes/overlays/{overlay}]\n{patches}",
        tmp_path,
    )


def test_the_mig_patch_asks_for_a_profile_in_place_of_a_gpu(tmp_path: Path) -> None:
    (job,) = of_kind(patched("gpu", "mig.yaml", tmp_path), "Job")
    limits = containers(job)[0]["resources"]["limits"]
    devices = {name: count for name, count in limits.items() if name.startswith("nvidia.com/")}
    assert devices == {"nvidia.com/mig-1g.18gb": "1"}


def test_a_label_that_the_operator_selects_by_is_put_on_its_objects(tmp_path: Path) -> None:
    objects = patched("prometheus-operator", "labels/release", tmp_path)
    labelled = [found for found in objects if "release" in found["metadata"]["labels"]]
    assert [found["kind"] for found in labelled] == ["PodMonitor", "PrometheusRule"]


def test_the_commands_make_what_the_pods_mount(tmp_path: Path) -> None:
    for file in ("invitation.json", "run.toml", "examples.jsonl"):
        (tmp_path / file).write_text("anything")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    functions = (
        f'kubectl() {{ {KUBECTL} "$@" --dry-run=client -o yaml; echo ---; }}\n'
        f'fedlora() {{ {sys.executable} -m fedlora_cli "$@" >&2; }}\n'
    )
    # All but what asks a cluster or a server.
    alone = [
        block
        for block in blocks("sh")
        if not re.search(r"--identity-dir|kubectl(?: -n [\w-]+)? (?!create)\w", block)
    ]
    done = subprocess.run(
        ["bash", "-euc", functions + "".join(alone)], cwd=tmp_path, capture_output=True, text=True,
        check=False, env={**os.environ, "KUBECONFIG": "/nowhere"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = [each for each in yaml.safe_load_all(done.stdout) if each]
    for kind, names in manifest_wiring.MADE_BY_HAND.items():
        assert {each["metadata"]["name"] for each in of_kind(made, kind)} == names
    keys = {each["metadata"]["name"]: each["data"].keys() for each in of_kind(made, "Secret")}
    for name in OVERLAYS:
        for workload in workloads(overlay(name)):
            for volume in pod_of(workload)["volumes"]:
                for source in volume.get("projected", {}).get("sources", [volume]):
                    if "secret" in source:
                        secret = source["secret"]
                        wanted = {item["key"] for item in secret.get("items", [])}
                        assert wanted <= keys[secret.get("secretName") or secret["name"]]


def test_what_the_pods_set_is_told_with_its_values() -> None:
    found: dict[str, dict[str, list[str]]] = {}
    for name in ("cpu", "gpu", *OVERLAYS):
        for workload in workloads(overlay(name)):
            for container in containers(workload):
                for variable in container["env"]:
                    values = found.setdefault(variable["name"], {})
                    seen = values.setdefault(workload["kind"], [])
                    value = f"`{variable['value']}`" if "value" in variable else "the pod's index"
                    if value not in seen:
                        seen.append(value)
    section = GUIDE.split("\n## What the pods set\n")[1].split("\n## ")[0]
    told = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            name, *cells, _ = (cell.strip() for cell in line.strip("|").split("|"))
            columns = zip(("StatefulSet", "Job", "Deployment"), cells, strict=True)
            told[name.strip("`")] = {kind: cell.split(", ") for kind, cell in columns if cell}
    assert told == found


def test_the_time_that_is_told_for_a_workers_end_is_the_codes() -> None:
    assert f"takes {GOODBYE_SECONDS:g} seconds more at most" in " ".join(GUIDE.split())


def test_every_folder_that_is_applied_is_there() -> None:
    applied = set(re.findall(r"apply -k (\S+)", GUIDE))
    assert applied
    for folder in applied:
        assert (ROOT / folder / "kustomization.yaml").is_file()
    assert set(re.findall(r"^\| `([\w-]+)` \| `values", GUIDE, re.MULTILINE)) == set(OVERLAYS)
