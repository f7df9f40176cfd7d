"""A worker process with a tiny trainer.

    python -m support.worker_process ADDRESS [MODE] [--cache-dir FOLDER]

MODE says where it never comes to an end: `load`, in loading; `train`, in training; `train:2`, in
training of round 2. With `work` it does all there is to do.
"""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from support.tiny_trainer import CoupledTrainer, TinyTrainer

from client_worker.app import run_worker
from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from fedlora.runs.tasks import Registration
from fedlora.telemetry import configure_logging


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("mode", nargs="?", default="train")
    parser.add_argument("--cache-dir", type=Path)
    arguments = parser.parse_args()
    mode, _, round = arguments.mode.partition(":")

    def create(registration: Registration) -> TinyTrainer:
        if mode == "load":
            threading.Event().wait()
        return CoupledTrainer(registration, endless=mode == "train", endless_from=int(round or 1))

    configure_logging()
    config = WorkerConfig(
        server=arguments.address,
        name="w",
        device="cpu",
        cache_dir=arguments.cache_dir,
        data=DataConfig(path="unused"),
    )
    return run_worker(config, create_trainer=create)


if __name__ == "__main__":
    sys.exit(main())
