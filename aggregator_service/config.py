"""How one aggregator process runs; `fedlora.config` fills it from file, environment, flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedLoraError, Reason

__all__ = ["AggregatorConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorConfig:
    """Settings of one aggregator process."""

    address: str = "127.0.0.1:8400"
    """host:port to serve on, port 0 for any free one; 127.0.0.1 is this machine only"""
    identity_dir: Path | None = None
    """folder with ca.crt, tls.crt and tls.key: calls are encrypted, and only those that the
    authority has certified are answered. They are read again when they change (docs/security.md)"""
    tokens_file: Path | None = None
    """bearer tokens in place of client certificates, written by `fedlora pki bearer`; read again
    when it changes"""
    insecure: bool = False
    """serve without identity_dir beyond this machine: whoever reaches the port may read all that is
    sent, and without tokens_file do everything"""
    authority_dir: Path | None = None
    """folder with the authority's ca.crt and ca.key: the server certifies workers that bring a join
    token, and renews certificates; needs identity_dir"""
    enrolment_address: str = ""
    """host:port where join tokens are taken, encrypted but without a certificate; none if empty"""
    certificate_days: float = 30.0
    """how long a certificate is good that this server signs"""
    health_address: str = ""
    """host:port for health checks in plain text and nothing else, such as a kubelet's; none if
    empty"""
    state_dir: Path = Path("fedlora-state")
    """database and adapters; one process owns it"""
    keep_rounds: int = 1
    """updates are kept of so many rounds, the newest, and of those that wait for a certificate;
    older ones are read by nobody and deleted. 0 keeps every update that was ever sent"""
    take_over: bool = False
    """start although another process holds state_dir: one that is frozen, or of a lost host; should
    it wake, it is refused every write and ends"""
    export_dir: Path | None = None
    """where run directories for people are written, one per run; none if unset"""
    device: str = "auto"
    """auto, cpu or cuda:N: where adapters are combined"""
    threads: int = 0
    """modules that are combined at a time on a CPU; 0 for as many as there are cores, in the
    machine or the container"""
    memory_bytes: int = 0
    """what combining, and measuring for a certificate, may take beside the files; 0 for half of the
    memory that the machine, or its container, has"""
    base_weights: Path | None = None
    """safetensors files of the base model, a file or a folder, for methods that read the frozen
    weights; read only"""
    base_fan_in_fan_out: bool = False
    """the adapted layers of base_weights are stored in_features x out_features, as in GPT-2"""
    metrics_address: str = ""
    """host:port of the metrics for Prometheus, over plain HTTP (docs/metrics.md); 9400 by
    convention, none if empty"""
    tensorboard: bool = False
    """write the rounds' scores, certificates, bytes and times for TensorBoard into run directories
    as well; needs the extra `tracking`"""
    reflection: bool = False
    """serve gRPC reflection, for tools such as grpcurl"""
    max_update_bytes: int = 8 * 1024**3
    """larger updates are refused before their first byte"""
    max_concurrent_rpcs: int = 4096
    """more calls at once are refused with RESOURCE_EXHAUSTED; each worker has two, its heartbeats
    and a long poll or a transfer"""
    heartbeat_interval_seconds: float = 15.0
    """what workers are told"""
    worker_timeout_seconds: float = 60.0
    """silence after which a worker counts as lost"""
    idle_timeout_seconds: float = 30.0
    """silence within an upload after which it is given up, to be resumed"""
    max_uploads: int = 0
    """uploads received at a time, others wait for their turn; each may hold 4 MiB that are not read
    yet. 0 for as many as a quarter of the memory of the machine, or its container, has room for,
    at most 512"""
    max_upload_bytes: int = 0
    """declared sizes of the uploads received at a time; a larger one is received alone. 0 for half
    of what is free on state_dir's disk at the start"""
    upload_wait_seconds: float = 2.0
    """an upload waits so long for its turn before it is told when to come back"""
    min_bytes_per_second: float = 65536.0
    """slower transfers are given up, to be resumed; lower it for workers on slow lines"""
    min_rate_seconds: float = 30.0
    """how far a transfer may fall behind min_bytes_per_second"""
    upload_deadline_seconds: float = 0.0
    """longest time for one stream of an upload; 0 for what its bytes take at min_bytes_per_second,
    and min_rate_seconds more"""
    shutdown_grace_seconds: float = 10.0
    """time that calls in flight get at SIGTERM"""
    exit_when_done: bool = False
    """leave once the run of the configuration has ended"""
    port_file: Path | None = None
    """the address served is written here once calls are accepted"""

    def __post_init__(self) -> None:
        for name in (
            "heartbeat_interval_seconds",
            "worker_timeout_seconds",
            "idle_timeout_seconds",
            "max_update_bytes",
            "max_concurrent_rpcs",
            "min_bytes_per_second",
            "min_rate_seconds",
            "certificate_days",
        ):
            if not getattr(self, name) > 0:
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"server.{name} must be positive, got {getattr(self, name)}",
                )
        for name in (
            "keep_rounds",
            "shutdown_grace_seconds",
            "threads",
            "memory_bytes",
            "max_uploads",
            "max_upload_bytes",
            "upload_wait_seconds",
            "upload_deadline_seconds",
        ):
            if getattr(self, name) < 0:
                raise FedLoraError(
                    Reason.INVALID_CONFIG,
                    f"server.{name} must not be negative, got {getattr(self, name)}",
                )
        if self.authority_dir is not None and self.identity_dir is None:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "server.authority_dir is set without server.identity_dir: nobody could show a "
                "certificate",
                hint="Set server.identity_dir; `fedlora pki init` makes both",
            )
        if self.enrolment_address and self.authority_dir is None:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "server.enrolment_address is set without server.authority_dir, which signs",
                hint="Set server.authority_dir; `fedlora pki init` makes one",
            )
        if self.tensorboard and self.export_dir is None:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                "server.tensorboard writes into run directories, and there are none",
                hint="Set server.export_dir",
            )
        if self.worker_timeout_seconds <= self.heartbeat_interval_seconds:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"server.worker_timeout_seconds ({self.worker_timeout_seconds:g}) must exceed "
                f"heartbeat_interval_seconds ({self.heartbeat_interval_seconds:g})",
            )
