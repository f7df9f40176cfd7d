"""`python -m support.gpu_worker`: a worker process with a tiny trainer, on GPUs that are not there.

CUDA shows it the devices of CUDA_VISIBLE_DEVICES; with STAND_IN_CUDA set it shows those, as if
something had kept the worker's choice from it. All else is the worker's own.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import torch
from support.tiny_trainer import CoupledTrainer

from client_worker.__main__ import worker_config
from client_worker.app import run_worker
from fedlora.telemetry import configure_logging


def _shown() -> list[str]:
    listed = os.environ.get("STAND_IN_CUDA") or os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [uuid for uuid in listed.split(",") if uuid]


def _properties(index: int) -> SimpleNamespace:
    uuid = _shown()[index].removeprefix("GPU-")
    return SimpleNamespace(uuid=uuid, name="NVIDIA H", total_memory=4 << 30)


def main() -> int:
    torch.cuda.is_available = lambda: bool(_shown())
    torch.cuda.device_count = lambda: len(_shown())
    torch.cuda.get_device_properties = _properties
    configure_logging()
    return run_worker(worker_config([]), create_trainer=CoupledTrainer)


if __name__ == "__main__":
    sys.exit(main())
