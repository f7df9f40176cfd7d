"""The services' logging for the length of a test; what was set up before is back after it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from fedlora.telemetry import configure_logging

__all__ = ["logged"]


_EVERYTHING = {"FEDLORA_LOG_LEVEL": "debug", "FEDLORA_LOG_FORMAT": "json"}


@contextmanager
def logged(environ: Mapping[str, str] = _EVERYTHING) -> Iterator[io.StringIO]:
    """All logs of this process, in a stream; as JSON lines, from debug on, unless told otherwise.

    Args:
        environ: FEDLORA_LOG_LEVEL and FEDLORA_LOG_FORMAT.
    """
    stream = io.StringIO()
    root = logging.getLogger()
    handlers, level, configured = list(root.handlers), root.level, structlog.get_config()
    configure_logging(stream=stream, environ=environ)
    try:
        yield stream
    finally:
        structlog.contextvars.clear_contextvars()
        structlog.configure(**configured)
        root.handlers = handlers
        root.setLevel(level)
