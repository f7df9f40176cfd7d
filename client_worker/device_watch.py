"""How the worker's CUDA device does: a line in the log once a minute, from a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Self

import structlog

from client_worker.stop import JOIN_SECONDS
from fedlora.devices import Reading
from fedlora.errors import FedLoraError

__all__ = ["DeviceWatch"]

log = structlog.get_logger(__name__)

_INTERVAL_SECONDS = 60.0


class DeviceWatch:
    """Reads the device now and then until closed; a context manager.

    A device that does not answer is reported once and asked again: what training makes of it is
    training's business.

    Args:
        read: one reading.
        worker: whose device it is, for the lines of the log.
        interval_seconds: pause between two readings.
    """

    def __init__(
        self,
        read: Callable[[], Reading],
        *,
        worker: str,
        interval_seconds: float = _INTERVAL_SECONDS,
    ) -> None:
        self._read = read
        self._interval_seconds = interval_seconds
        self._answers = True
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="device-watch", daemon=True)
        self._log = log.bind(worker=worker)

    def __enter__(self) -> Self:
        """Begins."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the thread; one reading may still be under way."""
        self._closing.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        while True:
            self._tell()
            if self._closing.wait(self._interval_seconds):
                return

    def _tell(self) -> None:
        try:
            reading = self._read()
        except FedLoraError as error:
            if self._answers:
                self._log.warning("device_silent", error=str(error))
            self._answers = False
        else:
            self._answers = True
            self._log.info("device", **asdict(reading))
