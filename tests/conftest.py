"""What all tests have in common: their order, one thread of torch, short tracebacks in their logs.

Test processes share the cores, and sums stay in one order. structlog's own way to show an
exception, which prints every local variable of every frame, takes seconds for each.
"""

from __future__ import annotations

import pytest
import structlog
import torch

torch.set_num_threads(1)

_renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[*structlog.get_config()["processors"][:-1], _renderer])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that are given more time come first: begun last, one alone keeps the others waiting."""

    def seconds(item: pytest.Item) -> float:
        module = item.getparent(pytest.Module)
        markers = module.own_markers if module else ()
        return max((float(m.args[0]) for m in markers if m.name == "timeout"), default=0.0)

    items.sort(key=seconds, reverse=True)
