"""`python -m fedlora_cli.simulation`: the federation of FEDLORA_CONFIG, in this process.

What it comes to is written into the folder of the configuration, which is named after the run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from aggregator_service.allocator import share_one_arena
from client_worker.device import resolve_device, verify_device
from fedlora.config import CONFIG_VARIABLE, LocalWorkers
from fedlora.errors import FedLoraError
from fedlora.exit_codes import exit_code_of
from fedlora.telemetry import configure_logging
from fedlora_cli.configuration import load
from fedlora_cli.simulation.federation import simulate


def main() -> int:
    """Simulates; returns the exit code."""
    # Each thread's own memory would be kept for the next time that it trains: a third of all.
    share_one_arena()
    configure_logging()
    folder = Path(os.environ[CONFIG_VARIABLE]).parent
    try:
        config = load(None)
        device = resolve_device(config.build("workers", LocalWorkers).device_of(0))
        verify_device()
        # In the run's folder, so that whoever removes that leaves nothing behind.
        with tempfile.TemporaryDirectory(dir=folder, prefix="scratch-") as scratch:
            simulate(config, device=device, export_dir=folder.parent, scratch=Path(scratch))
    except FedLoraError as error:
        print(f"fedlora: {error}", file=sys.stderr)
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
