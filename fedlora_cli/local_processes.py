"""The processes of a federation on this machine: what each of them is told.

They are the same ones a federation over many machines has. All of it is in their environment; the
configuration that they read is the run folder's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from fedlora.config import CONFIG_VARIABLE, Config, LocalWorkers
from fedlora.devices import NvmlDevices, usable
from fedlora.errors import FedLoraError
from fedlora.process_limits import available_cores
from fedlora.runs.tasks import Role
from fedlora_cli.forked import TRAINING_LIBRARIES, ForkServer, can_fork
from fedlora_cli.processes import ManagedProcess, child_environment, metrics_address
from fedlora_cli.run_folder import RunFolder

__all__ = ["LocalProcesses"]

# Of a file that also serves a federation over machines: here nobody else can call, and the command
# line and the workers have no identity to show.
_NO_SERVER_IDENTITY = {
    "FEDLORA_SERVER__IDENTITY_DIR": "",
    "FEDLORA_SERVER__TOKENS_FILE": "",
    "FEDLORA_SERVER__AUTHORITY_DIR": "",
    "FEDLORA_SERVER__ENROLMENT_ADDRESS": "",
}
_NO_WORKER_IDENTITY = {
    "FEDLORA_WORKER__IDENTITY_DIR": "",
    "FEDLORA_WORKER__TOKEN_FILE": "",
    "FEDLORA_WORKER__INVITATION": "",
}


class LocalProcesses:
    """Makes them; none is started here but what workers on a CPU are forks of.

    Args:
        config: the run and its data.
        settings: of the workers.
        folder: where state, logs and results are.
    """

    def __init__(self, config: Config, settings: LocalWorkers, folder: RunFolder) -> None:
        self._run_name = config.need_run().name
        self._metrics_address = str(config.section("worker").get("metrics_address", ""))
        self._settings = settings
        self._folder = folder
        self._cores = available_cores()
        self._fork_server: ForkServer | None = None
        # A name of its own: the file of an aggregator that was killed must not be taken for ours.
        self.port_file = folder.root / f".address-{os.getpid()}"
        """where the aggregator writes its address"""

    @property
    def threads(self) -> int:
        """Of each worker."""
        return self._settings.threads_of(self._cores)

    def prepare(self) -> None:
        """Has the workers' libraries imported, where that can be done once for all of them."""
        if can_fork() and _is_on_cpu(self._settings.devices):
            self._fork_server = ForkServer(
                TRAINING_LIBRARIES,
                environment=self._environment(threads=self.threads),
                log=self._folder.log_dir / "workers.log",
            )

    def close(self) -> None:
        """Leaves nothing behind; after the processes have ended."""
        if self._fork_server is not None:
            self._fork_server.close()
        self.port_file.unlink(missing_ok=True)

    def aggregator(self) -> ManagedProcess:
        """The server, on a free port."""
        folder = self._folder
        environment = self._environment(threads=self._cores) | {
            "FEDLORA_SERVER__ADDRESS": "127.0.0.1:0",
            "FEDLORA_SERVER__STATE_DIR": str(folder.state_dir.absolute()),
            "FEDLORA_SERVER__EXPORT_DIR": _export_dir(folder, self._run_name),
            "FEDLORA_SERVER__PORT_FILE": str(self.port_file.absolute()),
            "FEDLORA_SERVER__EXIT_WHEN_DONE": "true",
            **_NO_SERVER_IDENTITY,
        }
        return ManagedProcess(
            "aggregator",
            "aggregator_service",
            environment=environment,
            log=folder.log_dir / "aggregator.log",
        )

    def workers(self, address: str) -> list[ManagedProcess]:
        """All that the settings ask for, for the server at `address`."""
        found = [self.worker(index, address) for index in range(self._settings.count)]
        return [*found, self._server_data(address)] if self._settings.server_data else found

    def worker(self, index: int, address: str) -> ManagedProcess:
        """Worker `index`, counted from 0."""
        settings = {}
        if self._settings.max_ranks:
            settings["FEDLORA_WORKER__MAX_RANK"] = str(self._settings.max_rank_of(index))
        return self._worker(f"worker-{index}", index, address, settings)

    def _server_data(self, address: str) -> ManagedProcess:
        settings = {
            "FEDLORA_WORKER__ROLE": Role.SERVER_DATA.value,
            "FEDLORA_DATA__ONLY_PUBLIC": "true",
        }
        return self._worker("server-data", self._settings.count, address, settings)

    def _worker(
        self, name: str, index: int, address: str, settings: Mapping[str, str]
    ) -> ManagedProcess:
        environment = self._environment(threads=self.threads) | {
            "FEDLORA_WORKER__SERVER": address,
            "FEDLORA_WORKER__NAME": name,
            "FEDLORA_WORKER__RUN_NAME": self._run_name,
            "FEDLORA_WORKER__DEVICE": self._settings.device_of(index),
            # On one machine several small workers may well be trained on one GPU.
            "FEDLORA_WORKER__SHARE_DEVICE": "true",
            "FEDLORA_WORKER__THREADS": str(self.threads),
            "FEDLORA_WORKER__CACHE_DIR": str(self._folder.worker_cache_dir(name).absolute()),
            "FEDLORA_WORKER__METRICS_ADDRESS": metrics_address(self._metrics_address, index),
            **_NO_WORKER_IDENTITY,
        }
        return ManagedProcess(
            name,
            "client_worker",
            environment={**environment, **settings},
            log=self._folder.log_dir / f"{name}.log",
            fork_server=self._fork_server,
        )

    def _environment(self, *, threads: int) -> dict[str, str]:
        environment = child_environment(os.environ, threads=threads)
        return environment | {CONFIG_VARIABLE: str(self._folder.config_file.absolute())}


def _is_on_cpu(devices: Sequence[str]) -> bool:
    """Whether these devices come to the CPU alone on this machine."""
    if not {*devices} <= {"cpu", "auto"}:
        return False
    try:
        return "auto" not in devices or not usable(NvmlDevices().present(), os.environ)
    except FedLoraError:
        # There is a driver and nothing to ask it with: the workers will say so.
        return False


def _export_dir(folder: RunFolder, run_name: str) -> str:
    """A folder in which `<run name>` is the run's folder, as the aggregator wants it.

    That is the parent, unless the folder was given a name of its own: then a link bears the
    run's name.
    """
    root = folder.root.absolute()
    if root.name == run_name:
        return str(root.parent)
    links = folder.state_dir / "export"
    links.mkdir(parents=True, exist_ok=True)
    link = links / run_name
    # Made anew: the folder may have been moved, or copied from another one, since it was here.
    link.unlink(missing_ok=True)
    link.symlink_to(root, target_is_directory=True)
    return str(links.absolute())
