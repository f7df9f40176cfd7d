"""How a worker runs on its machine; `fedlora.config` fills it from file, environment, flags."""

from __future__ import annotations

import enum
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from client_worker.data.config import DataConfig
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import Role, check_worker_name

__all__ = ["WorkerConfig", "WorkerRank", "default_name"]


class WorkerRank(enum.StrEnum):
    """How a worker's rank is found, up to `max_rank`."""

    RUN = "run"
    """the run's"""
    AUTO = "auto"
    """the run's, or the largest that its device has room for"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """Settings of one worker process."""

    server: str = "127.0.0.1:8400"
    """host:port of the aggregator"""
    identity_dir: Path | None = None
    """folder with ca.crt, tls.crt and tls.key, from `fedlora worker enroll`: how the worker knows
    its server and proves its name. Beside token_file, ca.crt alone will do (docs/security.md)"""
    token_file: Path | None = None
    """a bearer token in place of a certificate, for servers that take them"""
    invitation: Path | None = None
    """from `fedlora pki token`: exchanged for an identity at the first start, if identity_dir has
    none yet"""
    insecure: bool = False
    """talk in plain text to a server on another machine"""
    name: str = ""
    """name the worker keeps over restarts, unlike that of any other; host and device if empty"""
    run_name: str = ""
    """run to join; empty joins the server's only open one"""
    role: Role = Role.PARTY
    """party trains on its own data; server_data holds data of the server's, is in no round and
    refines what rounds came to, for methods that have such a stage"""
    device: str = "auto"
    """auto, cpu, cuda:N or cuda:GPU-<uuid>; one device and one only"""
    share_device: bool = False
    """whether other workers that say so too may use the same CUDA device; else it is this one's"""
    device_lock_dir: Path = Path("/tmp/fedlora-devices")  # noqa: S108 - one for all of a host
    """folder of the locks that keep workers of one host off each other's CUDA devices"""
    data: DataConfig
    """the section [data]"""
    data_slot: int | None = None
    """share of an experiment's split data that this worker would have, from 0; if unset, the number
    its name ends with. It gets another where that is taken"""
    threads: int = 0
    """CPU threads for training; 0 for torch's default, at most the cores of the container"""
    max_rank: int = 0
    """largest LoRA rank this worker trains; 0 for the run's"""
    rank: WorkerRank = WorkerRank.RUN
    """run: the run's rank, or max_rank; auto: no more than the free memory of its device has room
    for, either (docs/worker.md)"""
    cache_dir: Path | None = None
    """keeps adapters, private parts and unsent updates over a restart; nothing is kept if unset"""
    metrics_address: str = ""
    """host:port of the metrics for Prometheus, over plain HTTP (docs/metrics.md); 9401 by
    convention, none if empty"""
    alive_file: Path | None = None
    """touched at each answer of the server, for health checks; none if unset"""
    wait_for_server_seconds: float = 900.0
    """how long to go on without an answer of the server before leaving; 0 for ever"""

    def __post_init__(self) -> None:
        host, separator, port = self.server.rpartition(":")
        if not (host and separator and port.isdigit() and 0 < int(port) < 65536):
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"worker.server must be host:port, got {self.server[:200]!r}",
                hint="For an aggregator on this machine, for example 127.0.0.1:8400",
            )
        if self.name:
            check_worker_name(self.name)
        if self.invitation is not None and self.identity_dir is None:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "worker.invitation is set without worker.identity_dir, where the identity would go",
                hint="Set worker.identity_dir",
            )
        if self.data_slot is not None and self.data_slot < 0:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"worker.data_slot must not be negative, got {self.data_slot}",
                hint="Shares are counted from 0; leave it out for any",
            )
        for field in ("threads", "max_rank", "wait_for_server_seconds"):
            if getattr(self, field) < 0:
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"worker.{field} must not be negative, got {getattr(self, field)}",
                )


def default_name(device: str) -> str:
    """The name of a worker that was given none, `myhost-cpu` or `myhost-cuda-0`.

    Args:
        device: as resolved, "cpu" or "cuda:0".
    """
    name = f"{socket.gethostname()}-{device}"
    return check_worker_name(re.sub(r"[^A-Za-z0-9.-]+", "-", name).lstrip("-.")[-128:])
