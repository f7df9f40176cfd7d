"""structlog, set up once per process: JSON lines for machines, coloured text on a terminal.

Logs of libraries (the standard library's logging) go the same way, so a file of JSON lines holds
nothing else. Run, round, task and worker are bound once and stand on every later line. Nothing
that is logged holds tensors, session tokens or texts of examples.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog

from fedlora.errors import FedLoraError, Reason

__all__ = ["bind_context", "configure_logging"]

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_FORMATS = ("auto", "json", "text")


def configure_logging(
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Sets up structlog and the standard library's logging for this process.

    FEDLORA_LOG_LEVEL is debug, info, warning or error; FEDLORA_LOG_FORMAT is json, text or auto
    (text where `stream` is a terminal).

    Args:
        stream: where lines go; standard error if None.
        environ: the environment; os.environ if None.

    Raises:
        FedLoraError: INVALID_CONFIG for a level or format there is not.
    """
    environ = os.environ if environ is None else environ
    stream = sys.stderr if stream is None else stream
    level = _LEVELS[_choice(environ, "FEDLORA_LOG_LEVEL", "info", tuple(_LEVELS))]
    chosen = _choice(environ, "FEDLORA_LOG_FORMAT", "auto", _FORMATS)
    as_text = chosen == "text" or (chosen == "auto" and stream.isatty())

    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=not as_text),
    ]
    last: list[structlog.typing.Processor]
    if as_text:
        # Both without the values of local variables, which may be tensors or examples.
        last = [
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    else:
        traces = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        last = [
            structlog.processors.ExceptionRenderer(traces),
            structlog.processors.JSONRenderer(),
        ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )


def bind_context(**values: object) -> None:
    """Puts values on every later line of this thread or task; None takes one off again."""
    structlog.contextvars.unbind_contextvars(*(k for k, v in values.items() if v is None))
    structlog.contextvars.bind_contextvars(**{k: v for k, v in values.items() if v is not None})


def _choice(environ: Mapping[str, str], variable: str, default: str, known: tuple[str, ...]) -> str:
    value = environ.get(variable, "").lower() or default
    if value not in known:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"{variable}: expected one of {', '.join(known)}, got {value!r}",
        )
    return value
