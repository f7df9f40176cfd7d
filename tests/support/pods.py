"""Pods of the manifests as containers of a real Docker engine.

What a kubelet makes of a pod is made here of the same manifest: command, environment, user,
capabilities, root file system, limits, and every mount with the owner and mode that it would have.
What only a cluster has is played: a Service is a network alias, an index is an argument, Secrets
and ConfigMaps are folders.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from support.deploy_tools import Object
from support.manifests import bytes_of, containers, environment, pod_of


class Cluster:
    """Where pods run: a network, and the Secrets, ConfigMaps and volumes that they name.

    Args:
        name: of the network; containers carry it.
        folder: for files.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._containers: list[str] = []

    def __enter__(self) -> Self:
        docker("network", "create", self.name)
        return self

    def __exit__(self, *_: object) -> None:
        for container in self._containers:
            docker("rm", "--force", "--volumes", container, check=False)
        docker("network", "rm", self.name, check=False)

    def keep(self, kind: str, name: str, files: Mapping[str, bytes]) -> None:
        """`kubectl create secret generic` or `kubectl create configmap`."""
        folder = self._source(kind, name)
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_bytes(content)

    def claim(self, workload: Object, volume: str) -> Path:
        """The folder that is a workload's persistent volume."""
        folder = self._folder / "claims" / workload["metadata"]["name"] / volume
        if not folder.is_dir():
            folder.mkdir(parents=True)
            _give_to_group(folder, pod_of(workload)["securityContext"]["fsGroup"], 0o2770)
        return folder

    def run(
        self,
        workload: Object,
        *,
        image: str,
        alias: str = "",
        index: int = 0,
        forwarded: int | None = None,
    ) -> Container:
        """Starts the one container of a workload's pod.

        Args:
            workload: of the manifests.
            image: what its image's name stands for here.
            alias: Service that has the pod.
            index: of an Indexed Job's pod.
            forwarded: port that `kubectl port-forward` would bring to this machine.
        """
        pod, (container,) = pod_of(workload), containers(workload)
        security, limits = pod["securityContext"], container["resources"]["limits"]
        name = f"{self.name}-{workload['metadata']['name']}-{index}-{len(self._containers)}"
        variables = environment(container, index)
        arguments = [
            "--name", name, "--network", self.name,
            "--user", f"{security['runAsUser']}:{security['runAsGroup']}",
            "--group-add", str(security["fsGroup"]),
            "--memory", str(bytes_of(limits["memory"])), "--cpus", limits["cpu"],
            "--entrypoint", container["command"][0],
        ]  # fmt: skip
        if alias:
            arguments += ["--network-alias", alias]
        if forwarded is not None:
            arguments += ["--publish", f"127.0.0.1::{forwarded}"]
        if pod["shareProcessNamespace"]:
            # The process is not number 1 there, as it is not under a process that reaps.
            arguments.append("--init")
        if container["securityContext"]["readOnlyRootFilesystem"]:
            arguments.append("--read-only")
        if not container["securityContext"]["allowPrivilegeEscalation"]:
            arguments += ["--security-opt", "no-new-privileges:true"]
        for capability in container["securityContext"]["capabilities"]["drop"]:
            arguments += ["--cap-drop", capability]
        for variable, value in variables.items():
            arguments += ["--env", f"{variable}={value}"]
        for mount in container["volumeMounts"]:
            arguments += ["--mount", self._mount(workload, mount, index)]
        docker("create", *arguments, image, *container["command"][1:])
        self._containers.append(name)
        docker("start", name)
        return Container(name, container)

    def _mount(self, workload: Object, mount: Object, index: int) -> str:
        target = f"destination={mount['mountPath']}"
        only_read = ",readonly" if mount.get("readOnly") else ""
        for volume in pod_of(workload)["volumes"]:
            if volume["name"] == mount["name"] and "emptyDir" in volume:
                return f"type=bind,source={self._empty(workload, volume['name'])},{target}"
            if volume["name"] == mount["name"] and "persistentVolumeClaim" not in volume:
                source = self._laid_out(workload, volume, index)
                if "subPathExpr" in mount:
                    source /= str(index)
                return f"type=bind,source={source},{target}{only_read}"
        return f"type=bind,source={self.claim(workload, mount['name'])},{target}{only_read}"

    def _empty(self, workload: Object, volume: str) -> Path:
        """The folder that is the emptyDir of one pod."""
        folder = self._folder / "empty" / f"{len(self._containers)}" / volume
        folder.mkdir(parents=True)
        _give_to_group(folder, pod_of(workload)["securityContext"]["fsGroup"], 0o2777)
        return folder

    def _laid_out(self, workload: Object, volume: Object, index: int) -> Path:
        """A Secret, a ConfigMap, or several of them, as the kubelet lays them out."""
        folder = self._folder / "pods" / workload["metadata"]["name"] / str(index) / volume["name"]
        group = pod_of(workload)["securityContext"]["fsGroup"]
        projected = volume.get("projected", {})
        for source in projected.get("sources", [volume]):
            kind = "secret" if "secret" in source else "configMap"
            name = source[kind].get("secretName") or source[kind]["name"]
            kept = self._source(kind, name)
            items = source[kind].get("items") or [
                {"key": file.name, "path": file.name} for file in kept.iterdir()
            ]
            mode = projected.get("defaultMode") or source[kind].get("defaultMode", 0o644)
            for item in items:
                file = folder / item["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                _give_to_group(file.parent, group, 0o2750)
                file.write_bytes((kept / item["key"]).read_bytes())
                _give_to_group(file, group, mode)
        _give_to_group(folder, group, 0o2750)
        return folder

    def _source(self, kind: str, name: str) -> Path:
        return self._folder / kind / name


class Container:
    """A running container, and the probes that its manifest has."""

    def __init__(self, name: str, manifest: Object) -> None:
        self.name = name
        self._manifest = manifest

    def python(self, code: str) -> str:
        """What `code` prints inside."""
        return docker("exec", self.name, "python", "-c", code).strip()

    def probe(self, kind: str) -> str:
        """What is wrong as that probe sees it; empty if nothing is.

        Args:
            kind: such as "readinessProbe".
        """
        probe = self._manifest[kind]
        if "exec" in probe:
            command = ["docker", "exec", self.name, *probe["exec"]["command"]]
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=probe["timeoutSeconds"],
                    check=False,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return f"no answer within {probe['timeoutSeconds']} s"
            return (done.stdout + done.stderr).strip() if done.returncode else ""
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        with grpc.insecure_channel(f"{self.address}:{probe['grpc']['port']}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    request, timeout=probe["timeoutSeconds"]
                )
            except grpc.RpcError as error:
                return str(error.code())
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "" if serving else f"status {answer.status}"

    def wait_until_started(self) -> None:
        """Probes as the kubelet does until the startup probe, or readiness, is content."""
        kind = "startupProbe" if "startupProbe" in self._manifest else "readinessProbe"
        probe = self._manifest[kind]
        problem = ""
        for _ in range(probe.get("failureThreshold", 12)):
            if not (problem := self.probe(kind)):
                return
            time.sleep(probe["periodSeconds"])
        logs = docker("logs", "--tail", "40", self.name)
        raise AssertionError(f"{self.name} did not start: {problem}\n{logs}")

    def wait_until_ended(self, timeout: float) -> int:
        """Its exit code."""
        return int(docker("wait", self.name, timeout=timeout))

    def stop(self, grace_seconds: int) -> int:
        """SIGTERM, and SIGKILL after the grace; its exit code."""
        docker("stop", "--time", str(grace_seconds), self.name)
        state: Object = self.inspected["State"]
        return int(state["ExitCode"])

    @property
    def inspected(self) -> Object:
        (found,) = json.loads(docker("inspect", self.name))
        described: Object = found
        return described

    def forwarded(self, port: int) -> str:
        """Where a forwarded port is on this machine, by the name that is in the certificate."""
        return docker("port", self.name, str(port)).strip().replace("127.0.0.1", "localhost")

    @property
    def address(self) -> str:
        (network,) = self.inspected["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])


def docker(*arguments: str, check: bool = True, timeout: float = 120) -> str:
    """Standard output and error of a docker command; its errors are part of the failure."""
    done = subprocess.run(
        ["docker", *arguments], check=False, text=True, timeout=timeout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stdout[-4000:]}")
    return done.stdout


def _give_to_group(path: Path, group: int, mode: int) -> None:
    # Of a read-only volume the kubelet gives what a file's owner may to the group as well.
    os.chown(path, 0, group)
    path.chmod(mode)
