"""`python device_workers_process.py DEVICES LOG_DIR`: `fedlora workers` with `support.gpu_worker`s.

The configuration comes from the environment; the GPUs are those of `support.nvml.environment`.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> int:
    from fedlora.devices import NvmlDevices
    from fedlora_cli.configuration import load
    from fedlora_cli.device_choice import select_places
    from fedlora_cli.device_workers import DeviceWorkers

    devices, log_dir, *identities = sys.argv[1:]
    machine = NvmlDevices()
    return DeviceWorkers(
        load(None, []),
        select_places(devices, machine),
        devices=machine,
        name_prefix="node",
        log_dir=Path(log_dir),
        identities=Path(identities[0]) if identities else None,
        program="support.gpu_worker",
    ).run()


if __name__ == "__main__":
    sys.exit(main())
