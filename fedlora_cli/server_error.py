"""An error that a server answered with, as against one made on this machine."""

from __future__ import annotations

from fedlora.errors import FedLoraError

__all__ = ["ServerError"]


class ServerError(FedLoraError):
    """What a server raised, with its reason; it decides the exit code."""

    @classmethod
    def of(cls, error: FedLoraError) -> ServerError:
        """The same error, marked."""
        return cls(error.reason, error.message, hint=error.hint)
