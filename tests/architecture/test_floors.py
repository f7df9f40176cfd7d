"""Imports go down a floor, never up or across; outside packages stay where they belong.

Two tables say all of it. A module belongs to the row with the longest prefix that fits it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from support.imports import Import, imports_of, is_in, modules_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fedlora", "aggregator_service", "client_worker", "fedlora_cli")

# --- the floors ----------------------------------------------------------------------------

ERRORS = (
    "fedlora.dataclass_fields", "fedlora.digests", "fedlora.errors", "fedlora.exit_codes",
    "fedlora.folders", "fedlora.process_limits", "fedlora._version", "fedlora.__version__",
)  # fmt: skip
DOMAIN = (
    "fedlora.adapters", "fedlora.codecs", "fedlora.tensors", "fedlora.runs", "fedlora.plugins",
)  # fmt: skip
EDGE = ("fedlora.rpc", "fedlora.config", "fedlora.telemetry", "fedlora.devices")
SHARED = (*ERRORS, "fedlora.numerics", *DOMAIN)

AGGREGATION = ("aggregator_service.aggregation",)
ROUNDS = ("aggregator_service.rounds",)
STORE = ("aggregator_service.store",)
REPORTING = ("aggregator_service.reporting",)
COORDINATOR = tuple(
    f"aggregator_service.{module}"
    for module in (
        "coordinator",
        "run_actor",
        "sessions",
        "uploads",
        "worker_calls",
        "enrolment",
        "telemetry",
    )
)
ADAPTATION = ("client_worker.adaptation", "client_worker.device")
DATA = ("client_worker.data",)
TRAINING = ("client_worker.training",)
FLOORS: Mapping[str, tuple[str, ...]] = {
    # what both services share
    "fedlora": ("fedlora._version",),
    **dict.fromkeys(ERRORS, ERRORS),
    "fedlora.numerics": ("fedlora.errors",),
    **dict.fromkeys(DOMAIN, SHARED),
    "fedlora.proto": (),
    "fedlora.wire": (*SHARED, "fedlora.proto"),
    "fedlora.rpc": (*SHARED, "fedlora.proto", "fedlora.wire", "fedlora.identity"),
    "fedlora.identity": ERRORS,
    "fedlora.config": SHARED,
    "fedlora.telemetry": (*SHARED, "fedlora.devices"),
    "fedlora.devices": ERRORS,
    # the aggregator: pure floors, then the modules of the package itself (coordinator and what it
    # is made of), then the network, then the composition root
    "aggregator_service.config": ("fedlora.errors",),
    "aggregator_service.bounds": (
        *SHARED, "fedlora.rpc", "aggregator_service.config", "aggregator_service.admission",
        "aggregator_service.pace",
    ),
    "aggregator_service.clock": (),
    "aggregator_service.failpoints": (),
    "aggregator_service.aggregation": SHARED,
    "aggregator_service.members": ("fedlora.identity",),
    "aggregator_service.caller": (*ERRORS, "fedlora.identity"),
    "aggregator_service.rounds": (*ERRORS, *DOMAIN, "aggregator_service.members"),
    # fedlora.wire.stream is sans-io: the order of chunks is checked where they are written.
    "aggregator_service.store": (
        *SHARED, *ROUNDS, "fedlora.wire.stream", "aggregator_service.failpoints",
        "fedlora.identity", "aggregator_service.members",
    ),
    "aggregator_service.reporting": (*SHARED, "fedlora.config", *ROUNDS),
    "aggregator_service": (
        *SHARED, *AGGREGATION, *ROUNDS, *STORE, *REPORTING, "aggregator_service.clock",
        "aggregator_service.failpoints", "aggregator_service.shared_work", "fedlora.wire.stream",
        "fedlora.identity", "aggregator_service.members", "aggregator_service.caller",
        "aggregator_service.telemetry", "fedlora.telemetry.logs",
    ),
    "aggregator_service.transport": (
        *SHARED, *EDGE, "fedlora.wire", "fedlora.proto", *ROUNDS, *COORDINATOR,
        "aggregator_service.config", "aggregator_service.shared_work", "fedlora.identity",
        "aggregator_service.bounds", "aggregator_service.caller", "aggregator_service.members",
        "aggregator_service.pace",
    ),
    # What is counted, and what is made of it: the server knows the first only.
    "aggregator_service.telemetry": (),
    "aggregator_service.metrics": (
        *SHARED, "fedlora.telemetry", *ROUNDS, *COORDINATOR, "aggregator_service.admission",
        "aggregator_service.disk_watch",
    ),
    "aggregator_service.shared_work": (),
    "aggregator_service.allocator": (),
    "aggregator_service.local_identities": (*ERRORS, "fedlora.identity"),
    "aggregator_service.healthcheck": (),
    "aggregator_service.app": ("fedlora", "aggregator_service"),
    "aggregator_service.__main__": ("fedlora", "aggregator_service"),
    # the worker, likewise: the modules of the package itself are the runner and its parts
    "client_worker.config": (*SHARED, *DATA),
    "client_worker.device": (*SHARED, "fedlora.devices"),
    "client_worker.adaptation": (*SHARED, "client_worker.device"),
    "client_worker.data": SHARED,
    "client_worker.training": (*SHARED, *ADAPTATION, *DATA),
    "client_worker": (
        *SHARED, *EDGE, *DATA, *TRAINING, "fedlora.identity", "client_worker.config",
    ),
    "client_worker.transport": (
        *SHARED, *EDGE, "fedlora.wire", "fedlora.proto", "fedlora.identity", "client_worker.config",
        "client_worker.ports",
    ),
    "client_worker.healthcheck": (),
    "client_worker.replica": (*ERRORS, "client_worker.__main__"),
    "client_worker.app": ("fedlora", "client_worker"),
    "client_worker.__main__": ("fedlora", "client_worker"),
    # the command line, above both
    "fedlora_cli": ("fedlora", "aggregator_service", "client_worker"),
}  # fmt: skip
"""unit -> units it may import besides itself"""

OUTSIDE: Mapping[str, tuple[str, ...]] = {
    "grpc": (
        "fedlora.rpc", "aggregator_service.transport", "aggregator_service.healthcheck",
        "client_worker.transport", "fedlora_cli",
    ),
    "grpc_health": ("aggregator_service.transport", "aggregator_service.healthcheck"),
    "grpc_reflection": ("aggregator_service.transport",),
    "grpc_status": ("fedlora.rpc",),
    "google.rpc": ("fedlora.rpc",),
    "google.protobuf": ("fedlora.wire", "fedlora.rpc"),
    "fedlora.proto": (
        "fedlora.wire", "fedlora.rpc", "aggregator_service.transport", "client_worker.transport",
        "fedlora_cli.admin_client", "fedlora_cli.adapter_download",
    ),
    "sqlite3": ("aggregator_service.store",),
    "torch": (
        "fedlora.numerics", "fedlora.adapters", "fedlora.codecs", "fedlora.tensors",
        "fedlora.plugins", "fedlora.telemetry.torch_device", "aggregator_service.aggregation",
        "aggregator_service.engine",
        "client_worker", "fedlora_cli.simulation",
    ),
    "torch.nn": ("client_worker.adaptation", "client_worker.training"),
    # Torch reads no memory that it may not write to.
    "numpy": ("fedlora.tensors.verifier",),
    "safetensors": (
        "fedlora.tensors", "fedlora.adapters", "aggregator_service.aggregation",
        "client_worker.adaptation",
    ),
    "scipy": ("fedlora_cli.study",),
    # Text becomes tokens in client_worker.data, which may name the tokenizer's type.
    "transformers": ("client_worker.adaptation", "client_worker.data"),
    "tokenizers": ("client_worker.adaptation", "client_worker.data"),
    "peft": ("client_worker.adaptation",),
    "datasets": ("client_worker.data",),
    "pynvml": ("fedlora.devices",),
    # Values are checked at the edges: where a configuration, a record or a report is read.
    "pydantic": (
        "fedlora.config", "aggregator_service.store", "aggregator_service.reporting",
        "fedlora_cli.study",
    ),
    "cryptography": ("fedlora.identity",),
    "pydantic_settings": ("fedlora.config",),
    "prometheus_client": (
        "fedlora.telemetry", "aggregator_service.metrics", "client_worker.metrics",
    ),
    "tensorboard": ("aggregator_service.reporting.event_files",),
    "typer": ("fedlora_cli",),
    "rich": ("fedlora_cli",),
}  # fmt: skip
"""outside package (or generated code) -> units that may import it; longest prefix decides"""


def unit_of(name: str, units: Iterable[str]) -> str | None:
    """The longest of `units` that `name` is in."""
    return max((u for u in units if is_in(name, u)), key=len, default=None)


def homeless(modules: Iterable[str]) -> list[str]:
    """Shared modules that no row of FLOORS speaks of."""
    return [m for m in modules if unit_of(m, FLOORS) == "fedlora" and m != "fedlora"]


def floor_violations(imports: Iterable[Import]) -> list[str]:
    found = []
    for item in imports:
        if item.name.split(".")[0] not in PACKAGES:
            continue
        unit = unit_of(item.importer, FLOORS)
        if unit is None or unit_of(item.name, FLOORS) == unit:
            continue
        if not any(is_in(item.name, allowed) for allowed in FLOORS[unit]):
            found.append(f"{item}, which is no floor below {unit}")
    return found


def outside_violations(imports: Iterable[Import]) -> list[str]:
    found = []
    for item in imports:
        package = unit_of(item.name, OUTSIDE)
        if package is None or is_in(item.importer, package):
            continue
        if not any(is_in(item.importer, unit) for unit in OUTSIDE[package]):
            found.append(f"{item}; only {', '.join(OUTSIDE[package]) or 'nobody'} may")
    return found


_HEAVY = ("aggregator_service", "client_worker", "fedlora_cli.simulation")


def eager_service_imports(imports: Iterable[Import]) -> list[str]:
    return [
        f"{item} when it is loaded; import services inside the command that needs them"
        for item in imports
        if is_in(item.importer, "fedlora_cli")
        and not is_in(item.importer, "fedlora_cli.simulation")
        and any(is_in(item.name, package) for package in _HEAVY)
        and not item.lazy
    ]


RULES = (floor_violations, outside_violations, eager_service_imports)


@pytest.fixture(scope="module")
def tree() -> list[Import]:
    found = imports_of(ROOT, PACKAGES)
    assert len(found) > 300, "the tree was not read"
    return found


def test_every_shared_module_has_a_floor() -> None:
    assert not (missing := homeless(modules_of(ROOT, PACKAGES))), f"no floor for {missing}"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule, tree: list[Import]) -> None:
    assert not rule(tree), "\n".join(rule(tree))


PLANTED = {
    "fedlora/numerics/planted.py": ("import torch.nn.functional as F", outside_violations),
    "aggregator_service/aggregation/planted.py": (
        "import torch\nlayer = torch.nn.Linear(2, 2)",
        outside_violations,
    ),
    "fedlora/runs/planted.py": ("from fedlora import wire", floor_violations),
    "aggregator_service/rounds/planted.py": (
        "from aggregator_service.store import blobs",
        floor_violations,
    ),
    "aggregator_service/store/planted.py": ("from ..transport import server", floor_violations),
    "aggregator_service/engine.py": ("import transformers", outside_violations),
    "aggregator_service/coordinator.py": (
        "from client_worker.runner import Runner",
        floor_violations,
    ),
    "client_worker/runner.py": ("def f():\n    import grpc", outside_violations),
    "client_worker/session.py": ("import fedlora.proto.v1.run_pb2", outside_violations),
    "client_worker/transport/planted.py": (
        "from client_worker import training",
        floor_violations,
    ),
    "client_worker/data/planted.py": ("from peft import LoraConfig", outside_violations),
    "fedlora/config/planted.py": ("import sqlite3", outside_violations),
    "fedlora/errors.py": ("from fedlora.numerics import sums", floor_violations),
    "fedlora_cli/commands/planted.py": (
        "from aggregator_service.app import serve",
        eager_service_imports,
    ),
    "fedlora_cli/study/planted.py": (
        "from fedlora_cli.simulation import federation",
        eager_service_imports,
    ),
}


@pytest.mark.parametrize("path", PLANTED)
def test_a_planted_violation_is_found_and_named(path: str, tmp_path: Path) -> None:
    source, rule = PLANTED[path]
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(source)
    (problem,) = rule(imports_of(tmp_path, PACKAGES))
    assert problem.startswith(f"{path}:")


def test_a_shared_module_without_a_floor_is_found(tmp_path: Path) -> None:
    (tmp_path / "fedlora").mkdir()
    (tmp_path / "fedlora" / "helpers.py").write_text("import os\n")
    assert homeless(modules_of(tmp_path, PACKAGES)) == ["fedlora.helpers"]


def test_the_command_line_may_import_a_service_inside_a_command(tmp_path: Path) -> None:
    file = tmp_path / "fedlora_cli" / "commands" / "fine.py"
    file.parent.mkdir(parents=True)
    file.write_text("def command():\n    from aggregator_service.app import serve\n")
    imports = imports_of(tmp_path, PACKAGES)
    assert imports
    assert [rule(imports) for rule in RULES] == [[], [], []]
