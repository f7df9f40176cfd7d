"""The folder of a local run: new, resumable, complete, or another run's.

config.toml   what it is run with        state/   the aggregator's database and adapters
logs/         output of every process     .lock    held by the command that runs it
              and what the aggregator writes for people
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedlora.config import Config, ConfigEntry, OriginKind, toml_text, toml_value
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.report import RoundReport, Run
from fedlora_cli.configuration import load
from fedlora_cli.file_lock import locked

__all__ = ["RunFolder", "decides"]

# What the processes are told may differ on a rerun (devices, threads, timeouts); the rest decides
# the result.
_PROCESSES = {"server", "worker", "workers"}


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of a run's folder, and what may be done with it."""

    root: Path

    @property
    def config_file(self) -> Path:
        """The resolved configuration."""
        return self.root / "config.toml"

    @property
    def state_dir(self) -> Path:
        """The aggregator's durable state."""
        return self.root / "state"

    @property
    def log_dir(self) -> Path:
        """Output of the processes."""
        return self.root / "logs"

    def worker_cache_dir(self, worker: str) -> Path:
        """What one worker keeps over a restart."""
        return self.state_dir / "workers" / worker

    @property
    def report_file(self) -> Path:
        """The page for people."""
        return self.root / "report.html"

    @property
    def final_adapter(self) -> Path:
        """The adapter that the run has ended with, as a PEFT folder."""
        return self.root / "final"

    @contextmanager
    def held(self) -> Iterator[None]:
        """While it lasts, no other command prepares or runs this folder.

        Raises:
            FedLoraError: ALREADY_EXISTS for a folder that holds something else, STATE_LOCKED if
                another process has it.
        """
        self._check_ours()
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(
            self._lock_file,
            taken=f"another `fedlora run` is at work in {str(self.root)!r}",
            hint="Let it end, or stop it; or name another folder with --run-dir",
        ):
            yield

    def prepare(self, config: Config, *, fresh: bool) -> bool:
        """Makes the folder ready for a run of `config`.

        Args:
            config: the resolved configuration.
            fresh: remove an earlier run instead of going on with it.

        Returns:
            Whether there is an earlier run to go on with.

        Raises:
            FedLoraError: ALREADY_EXISTS for a folder that holds something else, or a run with
                another configuration.
        """
        self._check_ours()
        if found := self._found():
            if not fresh:
                self._check_same(config)
                return True
            for path in found:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.config_file.with_suffix(".tmp")
        temporary.write_text(toml_text(_recorded(config)), encoding="utf-8")
        temporary.replace(self.config_file)
        return False

    def run(self) -> Run | None:
        """The run as the aggregator last described it; None before it has."""
        from aggregator_service.reporting.run_directory import read_run

        return read_run(self.root) if (self.root / "run.json").exists() else None

    def rounds(self) -> tuple[RoundReport, ...]:
        """The completed rounds."""
        from aggregator_service.reporting.run_directory import read_rounds

        return read_rounds(self.root)

    @property
    def _lock_file(self) -> Path:
        return self.root / ".lock"

    def _found(self) -> set[Path]:
        """What is in the folder, but for the lock, which outlives a run that is removed."""
        return {*self.root.iterdir()} - {self._lock_file} if self.root.exists() else set()

    def _check_ours(self) -> None:
        if self._found() and not self._holds_run():
            raise FedLoraError(
                Reason.ALREADY_EXISTS,
                f"{str(self.root)!r} is not empty and holds no fedlora run",
                hint="Name another folder with --run-dir",
            )

    def _holds_run(self) -> bool:
        """Whether a run was begun here: others keep a config.toml, too, beside what is theirs."""
        if not self.config_file.is_file():
            return False
        if self._found() <= {self.config_file, self.log_dir}:
            return True
        # Of a federation in processes, of one in a single process, and of either once it is shown.
        begun = (self.state_dir, self.log_dir / "cell.log", self.root / "run.json")
        return any(path.exists() for path in begun)

    def _check_same(self, config: Config) -> None:
        before = _values(load(self.config_file, environ={}))
        now = _values(config)
        changed = [
            f"{name}: {_text(before, name)} -> {_text(now, name)}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise FedLoraError(
                Reason.ALREADY_EXISTS,
                f"the run in {str(self.root)!r} has another configuration: {'; '.join(changed)}",
                hint="Start anew with --fresh, which removes what is there, or name another folder "
                "with --run-dir",
            )


def _recorded(config: Config) -> Iterable[ConfigEntry]:
    """The run in full; of the processes' sections only what somebody has written."""
    for entry in config.entries:
        whole = decides(entry) and entry.section != "data"
        if whole or entry.origin.kind is not OriginKind.DEFAULT:
            yield entry


def _values(config: Config) -> dict[str, object]:
    return {e.name: e.value for e in config.entries if decides(e)}


def decides(entry: ConfigEntry) -> bool:
    """Whether a value decides the result of a run, and not only how it is run."""
    return entry.section not in _PROCESSES


def _text(values: Mapping[str, object], name: str) -> str:
    value = values.get(name)
    return "unset" if value is None else toml_value(value)
