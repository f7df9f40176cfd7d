"""Exit codes of every fedlora program; docs/cli.md lists them."""

from __future__ import annotations

import enum
import signal

from fedlora.errors import FedLoraError, Reason

__all__ = ["ExitCode", "exit_code_of"]


class ExitCode(enum.IntEnum):
    """What a process that has ended tells its caller. Codes are stable: add, never renumber."""

    OK = 0
    """done, or stopped in good order"""
    INTERNAL = 1
    """a mistake of ours; the log has the details"""
    USAGE = 2
    """a flag, a configuration key, a file or a base model: something to correct on this machine"""
    REFUSED = 3
    """the server said no; its text says why"""
    UNREACHABLE = 4
    """the server did not answer for as long as the configuration allows"""
    FENCED = 5
    """a newer process has taken this worker's name, or this server's state"""
    DEVICE = 6
    """the device asked for is not there, not alone, or too small"""
    RUN_FAILED = 7
    """the run ended without its last adapter"""
    INTERRUPTED = 128 + signal.SIGINT.value
    """stopped by Ctrl-C; `fedlora run` and `fedlora study` also by SIGTERM"""


_DEVICE = {Reason.DEVICE_UNAVAILABLE, Reason.DEVICE_OUT_OF_MEMORY}
_UNREACHABLE = {Reason.UNAVAILABLE, Reason.DEADLINE_EXCEEDED}


def exit_code_of(error: FedLoraError, *, from_server: bool = False) -> ExitCode:
    """The code for an error that ends a program.

    Args:
        error: what ended it.
        from_server: it came as a server's answer, and is not something to correct here.
    """
    if error.reason in _UNREACHABLE:
        return ExitCode.UNREACHABLE
    if error.reason is Reason.SESSION_FENCED:
        return ExitCode.FENCED
    if error.reason in _DEVICE:
        return ExitCode.DEVICE
    if error.reason is Reason.INTERNAL:
        return ExitCode.INTERNAL
    return ExitCode.REFUSED if from_server else ExitCode.USAGE
