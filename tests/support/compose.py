"""A Compose project of this repository's files, driven by the real `docker compose`."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import grpc

from fedlora.proto.v1 import admin_pb2, admin_pb2_grpc
from fedlora.rpc.security import ClientSecurity

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
GPU_OVERLAY = ROOT / "docker" / "compose.gpu.yml"


@functools.cache
def missing_engine() -> str:
    """Why Docker tests cannot run here; empty if they can."""
    if shutil.which("docker") is None:
        return "there is no docker command"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{' '.join(command)} fails: {done.stderr.strip().splitlines()[-1:]}"
    return ""


def resolved(*files: Path) -> dict[str, object]:
    """The project as Compose understands it, with all its profiles."""
    arguments = [part for file in files for part in ("-f", str(file))]
    done = subprocess.run(
        ["docker", "compose", "--project-directory", str(ROOT), *arguments, "--profile", "*",
         "config", "--format", "json"],
        capture_output=True, text=True, check=True, env=_clean_environment({}),
    )  # fmt: skip
    loaded: dict[str, object] = json.loads(done.stdout)
    return loaded


class Project:
    """One running project; a context manager that leaves nothing behind.

    Args:
        name: of the project; its containers, networks and volumes carry it.
        folder: for an overlay file.
        variables: what docker-compose.yml reads from the environment.
        services: what differs from docker-compose.yml, by service.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        variables: Mapping[str, str],
        services: Mapping[str, Mapping[str, object]],
    ) -> None:
        self._name = name
        self._folder = folder
        self._environment = _clean_environment(variables)
        different = dict(services)
        wheels = wheels_with_torch()
        if wheels is not None:
            # pip was told here where torch lies; the builds are told the same.
            build = {"build": {"additional_contexts": {"wheels": str(wheels)}}}
            different |= dict.fromkeys(("identities", "aggregator", "worker"), build)
            self._environment["TORCH_INDEX"] = ""
        overlay = folder / "overlay.json"
        overlay.write_text(json.dumps({"services": different}))
        self._files = [FILE, overlay]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self("down", "--volumes", "--timeout", "20", check=False)

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 1500) -> str:
        """Standard output of `docker compose ...`; its errors are part of the failure."""
        files = [part for file in self._files for part in ("-f", str(file))]
        done = subprocess.run(
            ["docker", "compose", "--project-directory", str(ROOT), "-p", self._name, *files,
             *arguments],
            capture_output=True, text=True, check=False, env=self._environment, timeout=timeout,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"docker compose {' '.join(arguments)}: exit code {done.returncode}\n"
                f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
            )
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Names of a service's containers that exist, in order."""
        lines = self("ps", "--all", "--format", "{{.Name}}", service).split()
        return sorted(lines)

    def python(self, service: str, code: str) -> str:
        """What `code` prints inside a running container of the service."""
        return self("exec", "-T", service, "python", "-c", code).strip()

    def published(self, service: str, port: int) -> str:
        """host:port on this machine of a service's port."""
        return self("port", service, str(port)).strip()

    @functools.cached_property
    def operator(self) -> Path:
        """The identity of the project's operator, copied to this machine."""
        folder = self._folder / "operator"
        self("cp", "identities:/identities/operator", str(folder))
        return folder

    def dial(self) -> grpc.Channel:
        """A channel to the aggregator's published port, as the operator."""
        return ClientSecurity(identity_dir=self.operator).dial(self.published("aggregator", 8400))

    def events(self, run: str, *, timeout: float) -> Iterator[admin_pb2.RunEvent]:
        """The run's events from the first, as they happen."""
        with self.dial() as channel:
            request = admin_pb2.WatchRunRequest(run=run, follow=True)
            for response in admin_pb2_grpc.AdminServiceStub(channel).WatchRun(
                request, timeout=timeout, wait_for_ready=True
            ):
                yield response.event

    def run_state(self, run: str) -> admin_pb2.Run:
        with self.dial() as channel:
            request = admin_pb2.GetRunRequest(run=run)
            response = admin_pb2_grpc.AdminServiceStub(channel).GetRun(request, timeout=20)
        state: admin_pb2.Run = response.run
        return state


def inspect(container: str) -> dict[str, object]:
    done = subprocess.run(
        ["docker", "inspect", container], capture_output=True, text=True, check=True
    )
    (loaded,) = json.loads(done.stdout)
    result: dict[str, object] = loaded
    return result


def wheels_with_torch() -> Path | None:
    """The folder where pip was told to find torch on this machine, if there is one."""
    folder = Path(os.environ.get("PIP_FIND_LINKS", ""))
    if folder.is_absolute() and any(folder.glob("torch-*.whl")):
        return folder
    return None


def _clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of somebody's own deployment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FEDLORA_", "COMPOSE_"))}
    return kept | dict(variables)
