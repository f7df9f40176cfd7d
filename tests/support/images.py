"""Images of this repository, built by the real engine, and containers of them."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.compose import ROOT, wheels_with_torch

IMAGES = ("aggregator", "worker")
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--init",
            "--security-opt", "no-new-privileges", "--network", "none")  # fmt: skip
"""what docker-compose.yml asks of the engine for every service"""


def docker(*arguments: str | Path, timeout: float = 900) -> str:
    """Standard output of `docker ...`; its errors are part of the failure."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, check=False, timeout=timeout
    )
    if done.returncode:
        raise AssertionError(f"docker {arguments[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout.strip()


def build(image: str, *arguments: str) -> str:
    """Builds docker/IMAGE.Dockerfile and returns the tag, which is this process's own."""
    tag = f"fedlora-{image}:test-{os.getpid()}"
    wheels = wheels_with_torch()
    local = ("--build-context", f"wheels={wheels}", "--build-arg", "TORCH_INDEX=") if wheels else ()
    file = ROOT / "docker" / f"{image}.Dockerfile"
    docker("build", "--tag", tag, "--file", file, *local, *arguments, ROOT)
    return tag


def python(image: str, code: str) -> str:
    """What `code` prints in a confined container of an image."""
    return docker("run", "--rm", *CONFINED, "--entrypoint", "python", image, "-c", code)


@contextmanager
def container(image: str, *arguments: str) -> Iterator[str]:
    """A running confined container; removed when the block ends."""
    name = docker("run", "--detach", *CONFINED, *arguments, image)
    try:
        yield name
    finally:
        docker("rm", "--force", "--volumes", name)


def wait_until_healthy(name: str, *, limit_seconds: float = 120) -> None:
    """Returns once the engine's own health check of a container has passed."""
    until = time.monotonic() + limit_seconds
    while time.monotonic() < until:
        state = docker("inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", name)
        if state == "running healthy":
            return
        if not state.startswith("running"):
            break
        time.sleep(0.1)
    raise AssertionError(f"{state}: {docker('logs', name)}")


def seconds_until_healthy(name: str) -> float:
    """How long a container that has just become healthy took, by the engine's clock.

    From its start to the end of the first of the engine's own health checks that passed: never less
    than it took, and up to a check's interval and its own time more.
    """
    state = json.loads(docker("inspect", "--format", "{{json .State}}", name))
    passed = next(check for check in state["Health"]["Log"] if check["ExitCode"] == 0)
    began, ended = map(dt.datetime.fromisoformat, (state["StartedAt"], passed["End"]))
    return (ended - began).total_seconds()
