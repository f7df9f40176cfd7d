"""`python worker_process.py ADDRESS [train|load]`: a real worker process with a tiny trainer.

It trains without end, or with "load" loads without end.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> int:
    from support.tiny_trainer import TinyTrainer

    from client_worker.app import run_worker
    from client_worker.config import WorkerConfig
    from client_worker.data.config import DataConfig
    from fedlora.runs.tasks import Registration
    from fedlora.telemetry import configure_logging

    def create(registration: Registration) -> TinyTrainer:
        if sys.argv[2:] == ["load"]:
            threading.Event().wait()
        return TinyTrainer(registration, endless=True)

    configure_logging()
    config = WorkerConfig(
        server=sys.argv[1], name="w", device="cpu", data=DataConfig(path="unused")
    )
    return run_worker(config, create_trainer=create)


if __name__ == "__main__":
    sys.exit(main())
