"""Each service runs with what its image carries: the base dependencies and its own extra.

A subprocess loads the service while everything else is hidden, so that an import that would fail
in the image fails here too. What our own code tries and survives is reported; what libraries probe
for (torch for pynvml, grpc for grpc_health) is their business.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

# What the other image carries, the packages of the other service, and the command line.
AGGREGATOR_LACKS = (
    "transformers", "peft", "tokenizers", "accelerate", "huggingface_hub", "datasets", "pynvml",
    "client_worker", "fedlora_cli",
)  # fmt: skip
WORKER_LACKS = ("grpc_health", "grpc_reflection", "aggregator_service", "fedlora_cli")
DEVELOPMENT = ("pytest", "hypothesis", "mypy", "grpc_tools", "hatchling")

LOADER = """
import importlib, sys

OURS = {"fedlora", "aggregator_service", "client_worker", "fedlora_cli", "planted"}

class Hide:  # a finder that does not find some names, as if they were not installed
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name not in names:
            return self.finder.find_spec(name, path, target)
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__", "").startswith("importlib."):
            frame = frame.f_back
        if frame.f_globals.get("__name__", "").partition(".")[0] in OURS:
            asked.add(name)
        return None

module, *names = sys.argv[1:]
asked = set()
sys.meta_path[:] = map(Hide, sys.meta_path)
importlib.import_module(module)
print("asked:", *sorted(asked))
print("loaded:", *sorted(set(names) & {m.partition(".")[0] for m in sys.modules}))
"""


def load(module: str, lacks: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LOADER, module, *lacks], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("module", ["aggregator_service.app", "aggregator_service.__main__"])
def test_the_aggregator_loads_without_the_libraries_of_a_worker(module: str) -> None:
    done = load(module, AGGREGATOR_LACKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked:", "loaded:"]


def test_the_healthcheck_loads_neither_torch_nor_the_configuration() -> None:
    done = load("aggregator_service.healthcheck", (*AGGREGATOR_LACKS, "torch", "pydantic", "numpy"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked:", "loaded:"]


@pytest.mark.parametrize(
    "module",
    # app.py imports the others once the device is chosen.
    [
        "client_worker.__main__",
        "client_worker.runner",
        "client_worker.training.trainer",
        "client_worker.transport.client",
    ],
)
def test_the_worker_loads_without_the_libraries_of_the_aggregator(module: str) -> None:
    done = load(module, WORKER_LACKS)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked:", "loaded:"]


@pytest.mark.parametrize(
    "module",
    [
        "aggregator_service.app",
        "client_worker.runner",
        "client_worker.training.trainer",
        "fedlora_cli.app",
    ],
)
def test_nothing_needs_the_tools_of_development(module: str) -> None:
    done = load(module, DEVELOPMENT)
    assert done.returncode == 0, done.stderr


def test_the_command_line_loads_no_service_before_it_is_asked_to() -> None:
    services = ("aggregator_service", "client_worker", "transformers", "peft")
    done = load("fedlora_cli.app", services)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["aggregator_service.app", "client_worker.app"])
def test_a_service_loads_nothing_for_metrics_before_it_is_asked_for_them(module: str) -> None:
    done = load(module, ("prometheus_client", "tensorboard"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked:", "loaded:"]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import transformers", "transformers"),
        ("def f():\n    import peft\nf()", "peft"),
        ("try:\n    import client_worker\nexcept ImportError:\n    pass", "client_worker"),
    ],
)
def test_a_planted_import_is_refused_or_reported(source: str, name: str, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = load("planted", AGGREGATOR_LACKS)
    if done.returncode == 0:
        assert f"asked: {name}" in done.stdout
    else:
        assert f"No module named {name!r}" in done.stderr
