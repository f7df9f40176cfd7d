"""How many workers `fedlora run` starts on this machine, and on what."""

from __future__ import annotations

from dataclasses import dataclass

from fedlora.errors import FedLoraError, Reason

__all__ = ["LocalWorkers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWorkers:
    """The workers of a federation on one machine."""

    count: int = 2
    """worker processes"""
    devices: tuple[str, ...] = ("auto",)
    """devices, taken in turn: auto, cpu, cuda:N or cuda:GPU-<uuid>"""
    threads_per_worker: int = 0
    """CPU threads of each worker; 0 shares the machine's cores evenly"""
    max_ranks: tuple[int, ...] = ()
    """largest LoRA ranks of the workers, taken in turn; 0 or none for the run's rank"""
    server_data: bool = False
    """one worker more, with the role server_data and the rows of data.public_fraction"""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise FedLoraError(
                Reason.INVALID_CONFIG, f"workers.count must be at least 1, got {self.count}"
            )
        if self.threads_per_worker < 0:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"workers.threads_per_worker must not be negative, got {self.threads_per_worker}",
            )
        if any(rank < 0 for rank in self.max_ranks):
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"workers.max_ranks must not be negative, got {list(self.max_ranks)}",
            )
        if not self.devices:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "workers.devices is empty",
                hint='Write devices = ["auto"] or name the devices',
            )

    def device_of(self, index: int) -> str:
        """The device of worker `index`, counted from 0."""
        return self.devices[index % len(self.devices)]

    def max_rank_of(self, index: int) -> int:
        """The largest rank of worker `index`, counted from 0; 0 for the run's."""
        return self.max_ranks[index % len(self.max_ranks)] if self.max_ranks else 0

    def threads_of(self, cores: int) -> int:
        """Threads each worker may use on a machine with `cores` cores."""
        return self.threads_per_worker or max(1, cores // self.count)
