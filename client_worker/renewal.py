"""Renews a worker's certificate while it works, once two thirds of its life are over.

Only where the worker may write its identity folder: one that somebody else renews, such as
cert-manager in a mounted Secret, is read-only and taken over as it changes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from client_worker.stop import JOIN_SECONDS
from fedlora.errors import FedLoraError
from fedlora.identity.folder import read_identity
from fedlora.identity.swap import settle

__all__ = ["Renewal"]

log = structlog.get_logger(__name__)

_SHARE_OF_LIFE = 2 / 3
_LOOK_SECONDS = 60.0


class Renewal:
    """A thread that renews; use it as a context manager.

    Args:
        folder: of the identity.
        renew: asks the server, writes the folder, and returns the new certificate's end.
        look_seconds: between two looks at the certificate.
        wall: seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        renew: Callable[[], float],
        *,
        look_seconds: float = _LOOK_SECONDS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._renew = renew
        self._look_seconds = look_seconds
        self._wall = wall
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewal", daemon=True)

    def __enter__(self) -> None:
        if os.access(self._folder, os.W_OK):
            settle(self._folder)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        if self._thread.is_alive():
            # A renewal under way may be lost: the folder is replaced whole, or not at all.
            self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while not self._ending.wait(self._look_seconds):
            try:
                if self._is_due():
                    log.info("identity_renewed", expires=self._renew())
            except (FedLoraError, OSError) as error:
                # There is a third of its life left to try again in.
                log.warning("identity_not_renewed", error=str(error))

    def _is_due(self) -> bool:
        life = read_identity(self._folder, now=self._wall()).certified
        return self._wall() > life.not_before + _SHARE_OF_LIFE * (life.not_after - life.not_before)
