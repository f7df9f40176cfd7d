"""Composition root of the worker: the only place that knows the concrete classes."""

from __future__ import annotations

import functools
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch

from client_worker.config import WorkerConfig, WorkerRank
from client_worker.device import capabilities, pinned_uuid, resolve_device, verify_device
from client_worker.device_figures import own_readings
from client_worker.device_watch import DeviceWatch
from client_worker.memory import free_bytes
from client_worker.own_name import own_name
from client_worker.patience import Patience
from client_worker.ports import RankLimit, Trainer, TrainerFactory
from client_worker.renewal import Renewal
from client_worker.runner import Runner
from client_worker.stop import JOIN_SECONDS, StopRequest
from client_worker.telemetry import Silent
from client_worker.training.features import FEATURES
from client_worker.transport.client import LEAVE_SECONDS, FederationClient
from client_worker.transport.enrolment import enrol, renew
from fedlora.codecs.spec import CodecName
from fedlora.devices import Devices, NvmlDevices, device_lock
from fedlora.errors import FedLoraError, Reason
from fedlora.exit_codes import ExitCode, exit_code_of
from fedlora.identity.folder import CERTIFICATE, certificate_end
from fedlora.identity.invitation import read_invitation
from fedlora.identity.swap import holds
from fedlora.plugins import known_plugins
from fedlora.rpc.security import ClientSecurity
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Registration
from fedlora.telemetry import bind_context

if TYPE_CHECKING:
    from client_worker.metrics import WorkerMetrics

__all__ = ["GOODBYE_SECONDS", "offered", "run_worker"]

log = structlog.get_logger(__name__)

GOODBYE_SECONDS = LEAVE_SECONDS + 5 * JOIN_SECONDS
"""what a worker that was told to stop takes at most, once it has left its training step: it says
goodbye, and ends its threads (progress, heartbeats, metrics, renewal, the look at the device)"""


def run_worker(config: WorkerConfig, *, create_trainer: TrainerFactory | None = None) -> int:
    """Works for a server until the run is over, a signal comes, or something ends it.

    Args:
        config: settings of the process.
        create_trainer: what is trained; `LocalTrainer` by default.

    Returns:
        The exit code (docs/worker.md).
    """
    stop = StopRequest()
    # Python lets only the main thread take signals; in another they are the caller's business.
    ours = threading.current_thread() is threading.main_thread()
    try:
        devices = NvmlDevices()
        # First of all: from here on the process sees its one device and no other.
        device = resolve_device(config.device, devices)
        with ExitStack() as stack:
            # Before CUDA starts, which would take memory of the device if it is another worker's.
            stack.enter_context(_own_device(config))
            verify_device()
            _enrol_if_invited(config)
            config = replace(config, name=own_name(config, device))
            bind_context(worker=config.name)
            stack.enter_context(stop.handling_signals() if ours else nullcontext())
            stack.enter_context(_watched(devices, config.name))
            scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="fedlora-worker-"))
            return _work(config, device, devices, stop, Path(scratch), create_trainer)
    except FedLoraError as error:
        code = exit_code_of(error)
        # Its text says all there is to say: a traceback would only bury it.
        log.error("gone", reason=str(error), exit_code=int(code))  # noqa: TRY400
        return code
    except torch.OutOfMemoryError as error:
        # Outside of passes that can be made smaller (client_worker.training.micro_batch).
        said = str(error).partition("\n")[0]
        log.error("gone", reason=f"the device is too small: {said}", exit_code=int(ExitCode.DEVICE))  # noqa: TRY400
        return ExitCode.DEVICE
    except Exception:
        log.exception("internal_error")
        return ExitCode.INTERNAL


def _enrol_if_invited(config: WorkerConfig) -> None:
    folder, invitation = config.identity_dir, config.invitation
    if folder is not None and invitation is not None and not holds(folder, CERTIFICATE):
        log.info("enrolled", identity=enrol(read_invitation(invitation), folder).uri)


def offered(config: WorkerConfig) -> Capabilities:
    """What a worker of these settings offers a server."""
    return replace(
        capabilities(),
        max_rank=config.max_rank,
        features=tuple(sorted(FEATURES)),
        codecs=tuple(CodecName),
        plugins=tuple(known_plugins()),
        role=config.role,
        preferred_data_slot=config.data_slot,
    )


def _work(
    config: WorkerConfig,
    device: str,
    devices: Devices,
    stop: StopRequest,
    scratch: Path,
    create_trainer: TrainerFactory | None,
) -> int:
    def create(registration: Registration) -> Trainer:
        with _needing_the_extra():
            from client_worker.training.trainer import LocalTrainer
        return LocalTrainer.create(
            registration.run,
            rank=registration.rank,
            data=config.data,
            slot=registration.data_slot,
            device=device,
            cache_dir=config.cache_dir,
            threads=config.threads,
        )

    log.info("starting", server=config.server, device=device)
    security = ClientSecurity(
        identity_dir=config.identity_dir, token_file=config.token_file, insecure=config.insecure
    )
    metrics = _metrics(config, devices) if config.metrics_address else None
    telemetry = metrics or Silent()
    with ExitStack() as stack:
        client = FederationClient(
            config.server,
            guard=stop.cancelling,
            dialler=security,
            on_received=telemetry.received,
            on_sent=telemetry.sent,
        )
        federation = stack.enter_context(client)
        if security.is_plain_beyond(config.server):
            log.warning("plain_text", server=config.server)
        if config.identity_dir is not None and config.token_file is None:
            renewing = functools.partial(renew, config.server, config.identity_dir)
            stack.enter_context(Renewal(config.identity_dir, renewing))
        runner = Runner(
            config,
            name=config.name,
            federation=federation,
            create_trainer=create_trainer or create,
            capabilities=offered(config),
            stop=stop,
            patience=Patience(
                limit_seconds=config.wait_for_server_seconds,
                sleep=stop.sleep,
                on_success=_sign_of_life(config.alive_file),
                on_retry=telemetry.tried_again,
            ),
            scratch=scratch,
            rank_limit=_rank_limit(config, device) if config.rank is WorkerRank.AUTO else None,
            telemetry=telemetry,
        )
        if metrics is not None:
            page = metrics.page(
                config.metrics_address,
                worker=config.name,
                device=device,
                state=lambda: runner.state,
            )
            stack.enter_context(page)
        return runner.run()


def _metrics(config: WorkerConfig, devices: Devices) -> WorkerMetrics:
    # Loading the library takes memory and time, which a worker without metrics need not spend.
    from client_worker.metrics import WorkerMetrics

    ends = functools.partial(certificate_end, config.identity_dir)
    return WorkerMetrics(functools.partial(own_readings, devices, pinned_uuid()), ends)


def _own_device(config: WorkerConfig) -> AbstractContextManager[None]:
    """Holds the device that was chosen, against other workers of this host."""
    uuid = pinned_uuid()
    if not uuid:
        return nullcontext()
    return device_lock(uuid, config.device_lock_dir, shared=config.share_device)


def _watched(devices: Devices, worker: str) -> AbstractContextManager[object]:
    """Tells of the device that was chosen, for as long as the worker is on it."""
    uuid = pinned_uuid()
    if not uuid:
        return nullcontext()
    return DeviceWatch(lambda: devices.read(uuid), worker=worker)


def _rank_limit(config: WorkerConfig, device: str) -> RankLimit:
    """What fits the memory that is free on the device before anything is loaded."""

    def limit(run: RunSpec) -> int:
        with _needing_the_extra():
            from client_worker.adaptation.room import fitting_rank
        hub_cache = config.cache_dir / "hub" if config.cache_dir else None
        return fitting_rank(run.adapter, free_bytes(device), hub_cache=hub_cache)

    return limit


@contextmanager
def _needing_the_extra() -> Iterator[None]:
    """Around imports of what knows models.

    They come when a model is needed: transformers and peft take seconds, in which the worker has
    registered and beats already, and look at the devices they find.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            f"training needs the package {error.name}, which is not installed",
            hint="Install it with: pip install 'fedlora[worker]'",
        ) from error


def _sign_of_life(file: Path | None) -> Callable[[], None]:
    """What marks the file of that name as fresh."""
    if file is None:
        return lambda: None
    file.parent.mkdir(parents=True, exist_ok=True)
    return file.touch
