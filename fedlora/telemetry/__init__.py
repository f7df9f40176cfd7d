"""Logs: one set-up for every fedlora process."""

from fedlora.telemetry.logs import bind_context, configure_logging

__all__ = ["bind_context", "configure_logging"]
