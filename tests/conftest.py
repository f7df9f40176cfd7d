"""What all tests have in common: one thread of torch, and short tracebacks in their logs.

Two test processes share two cores, and sums stay in one order. structlog's own way to show an
exception, which prints every local variable of every frame, takes seconds for each.
"""

from __future__ import annotations

import structlog
import torch

torch.set_num_threads(1)

_renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _renderer])
