"""`python -m client_worker`: settings from FEDLORA_CONFIG, FEDLORA_WORKER__* and a few flags."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from fedlora.config import load_config
from fedlora.errors import FedLoraError
from fedlora.exit_codes import exit_code_of
from fedlora.telemetry import configure_logging

__all__ = ["main", "worker_config"]

_FLAGS = {
    "server": "host:port of the aggregator",
    "name": "name that the worker keeps over restarts",
    "device": "auto, cpu, cuda:N or cuda:GPU-<uuid>",
}


def worker_config(arguments: Sequence[str] | None = None) -> WorkerConfig:
    """The settings: file, then environment, then flags.

    Args:
        arguments: of the command line; sys.argv's if None.

    Raises:
        FedLoraError: INVALID_CONFIG naming the key.
    """
    parser = argparse.ArgumentParser(prog="python -m client_worker", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file; FEDLORA_CONFIG otherwise")
    for name, text in _FLAGS.items():
        parser.add_argument(f"--{name}", help=text)
    flags = vars(parser.parse_args(arguments))
    config = load_config(
        flags["config"],
        services={"worker": WorkerConfig, "data": DataConfig},
        overrides=[f"worker.{name}={flags[name]}" for name in _FLAGS if flags[name] is not None],
    )
    return config.build("worker", WorkerConfig, data=config.build("data", DataConfig))


def main() -> int:
    """Works until the run is over or a signal comes; returns the exit code (docs/worker.md)."""
    try:
        configure_logging()
        config = worker_config()
        # torch and gRPC take seconds to load: a mistake in the settings is told before.
        from client_worker.app import run_worker

        return run_worker(config)
    except FedLoraError as error:
        print(f"fedlora-worker: {error}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)


if __name__ == "__main__":
    sys.exit(main())
