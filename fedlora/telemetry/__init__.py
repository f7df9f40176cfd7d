"""What every fedlora process tells of itself: its log, and metrics for Prometheus."""

from fedlora.telemetry.logs import bind_context, configure_logging

__all__ = ["bind_context", "configure_logging"]
