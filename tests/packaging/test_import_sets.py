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
METRICS = ("prometheus_client", "tensorboard")  # loaded once they are asked for
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


AGGREGATOR = "aggregator_service.app"
# app.py imports the trainer once the device is chosen.
WORKER = ("client_worker.app", "client_worker.training.trainer")


@pytest.mark.parametrize(
    ("module", "lacks"),
    [
        (AGGREGATOR, (*AGGREGATOR_LACKS, *METRICS)),
        *((m, (*WORKER_LACKS, *METRICS)) for m in WORKER),
    ],
)
def test_a_service_loads_with_what_its_image_carries(module: str, lacks: tuple[str, ...]) -> None:
    done = load(module, (*lacks, *DEVELOPMENT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked:", "loaded:"]


@pytest.mark.parametrize(
    ("module", "lacks"),
    [
        ("aggregator_service.healthcheck", (*AGGREGATOR_LACKS, "torch", "pydantic", "numpy")),
        # A mistake in the settings is told before what takes seconds to load.
        ("aggregator_service.__main__", ("torch", "grpc", "numpy")),
        ("client_worker.__main__", ("torch", "grpc", "numpy")),
        ("client_worker.replica", ("torch", "grpc", "numpy")),
    ],
)
def test_what_must_be_quick_loads_nothing_heavy(module: str, lacks: tuple[str, ...]) -> None:
    done = load(module, lacks)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["asked:", "loaded:"]


def test_the_command_line_loads_no_service_before_it_is_asked_to() -> None:
    services = ("aggregator_service", "client_worker", "transformers", "peft")
    done = load("fedlora_cli.app", (*services, *DEVELOPMENT))
    assert done.returncode == 0, done.stderr


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
