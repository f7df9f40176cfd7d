"""A worker's runner against a server, with a trainer that a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.tiny_trainer import TinyTrainer

from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from client_worker.patience import Patience
from client_worker.ports import RankLimit
from client_worker.runner import Runner
from client_worker.stop import StopRequest
from client_worker.training.features import FEATURES
from client_worker.transport.client import FederationClient
from fedlora.codecs.spec import CodecName
from fedlora.plugins import known_plugins
from fedlora.runs.tasks import Capabilities, Registration


class FakeTime:
    """A clock that only a pause moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@dataclass
class Worker:
    """A runner and what it was made of."""

    runner: Runner
    stop: StopRequest
    client: FederationClient
    trainers: list[TinyTrainer] = field(default_factory=list)

    def run_in_thread(self, seconds: float = 90) -> Callable[[], int]:
        """Starts it; the function returned waits for its exit code."""
        codes: list[int] = []
        thread = threading.Thread(target=lambda: codes.append(self.runner.run()), daemon=True)
        thread.start()

        def wait() -> int:
            thread.join(seconds)
            assert codes, "the worker did not end"
            return codes[0]

        return wait


@contextmanager
def worker(
    address: str,
    tmp_path: Path,
    *,
    name: str = "w",
    on_step: Callable[[int], None] = lambda _: None,
    endless: bool = False,
    create: Callable[[Registration], Any] | None = None,
    patience: Patience | None = None,
    max_rank: int = 0,
    codecs: tuple[CodecName, ...] = tuple(CodecName),
    rank_limit: RankLimit | None = None,
    plugins: tuple[str, ...] | None = None,
    **settings: Any,
) -> Iterator[Worker]:
    """A worker that is ready to run; its pauses between tries last no time."""
    config = WorkerConfig(server=address, name=name, data=DataConfig(path="unused"), **settings)
    stop, trainers = StopRequest(), []

    def make(registration: Registration) -> TinyTrainer:
        trainers.append(TinyTrainer(registration, on_step=on_step, endless=endless))
        return trainers[-1]

    with FederationClient(address, guard=stop.cancelling) as client:
        runner = Runner(
            config,
            name=name,
            federation=client,
            create_trainer=create or make,
            capabilities=Capabilities(
                device_name="cpu",
                max_rank=max_rank,
                features=tuple(sorted(FEATURES)),
                codecs=codecs,
                plugins=tuple(known_plugins()) if plugins is None else plugins,
                role=config.role,
            ),
            stop=stop,
            patience=patience or Patience(limit_seconds=30.0, sleep=lambda _: None),
            scratch=tmp_path / "scratch",
            rank_limit=rank_limit,
        )
        yield Worker(runner=runner, stop=stop, client=client, trainers=trainers)
