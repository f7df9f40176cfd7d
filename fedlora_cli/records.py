"""Domain objects as JSON; the same records that a run directory holds."""

from __future__ import annotations

from typing import Any

from fedlora_cli.configuration import need_service

__all__ = ["to_record"]


def to_record(value: object) -> Any:
    """A dataclass as dictionaries, lists, strings and numbers."""
    need_service("aggregator_service", "aggregator")
    from aggregator_service.reporting.records import to_record as convert

    return convert(value)
