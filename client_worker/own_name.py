"""What a worker is called: by its certificate, or by its configuration, or after its place."""

from __future__ import annotations

import time

from client_worker.config import WorkerConfig, default_name
from fedlora.errors import FedLoraError, Reason
from fedlora.identity.folder import read_identity
from fedlora.identity.names import AccessRole

__all__ = ["own_name"]


def own_name(config: WorkerConfig, device: str) -> str:
    """The worker's name.

    Args:
        config: of the worker.
        device: as resolved, "cpu" or "cuda:0".

    Raises:
        FedLoraError: INVALID_CONFIG for an identity that is of no use, not a worker's, or not the
            one of the name in the configuration.
    """
    folder = config.identity_dir
    if folder is None or config.token_file is not None:
        return config.name or default_name(device)
    identity = read_identity(folder, now=time.time()).identity
    if identity.role is not AccessRole.WORKER or config.name not in ("", identity.name):
        expected = f"of worker {config.name!r}" if config.name else "of a worker"
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"{folder} must be the identity {expected}, and is that of {identity}",
            hint="Leave worker.name out, or set worker.identity_dir to this worker's own",
        )
    return identity.name
