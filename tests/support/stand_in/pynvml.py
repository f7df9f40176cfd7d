"""pynvml in a process of a test: the GPUs that `support.nvml.environment` has described to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from support.nvml import StandInNvml, from_environment

_nvml = from_environment(os.environ)


def __getattr__(name: str) -> object:
    return getattr(_nvml, name)


NVMLError = StandInNvml.NVMLError
