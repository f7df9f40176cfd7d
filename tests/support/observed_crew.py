"""Two real workers with bearer tokens, whose texts and tensors are marked, held in a round."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from support.worker_runs import LABELS, trainer_for, write_jsonl
from torch import Tensor

from client_worker.app import run_worker
from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from client_worker.training.trainer import LocalTrainer
from fedlora.exit_codes import ExitCode
from fedlora.identity.bearer import add_bearer_token
from fedlora.identity.names import AccessRole
from fedlora.rpc.security import ClientSecurity
from fedlora.runs.tasks import Registration

__all__ = ["CANARY_TEXT", "CANARY_VALUE", "NUM_ROUNDS", "OPERATOR", "WORKERS", "Crew", "Members"]

CANARY_TEXT = "zebraquagga"
"""in the text of every example"""

CANARY_VALUE = 0.0314159
"""an entry of a tensor of every update, and so of every adapter"""

NUM_ROUNDS = 2

WORKERS = ("w-0", "w-1")
OPERATOR = "o"


class Members:
    """Who may call, by bearer token.

    Args:
        folder: gets their files.
        authority: folder with ca.crt.
    """

    def __init__(self, folder: Path, authority: Path) -> None:
        self.tokens_file = folder / "tokens"
        self.authority = authority
        self.tokens: list[str] = []
        self._folder = folder
        roles = {**dict.fromkeys(WORKERS, AccessRole.WORKER), OPERATOR: AccessRole.OPERATOR}
        for name, role in roles.items():
            now = time.time()
            token = add_bearer_token(
                self.tokens_file, role, name, issued_at=now - 1, expires_at=now + 3600
            )
            self.file_of(name).write_text(token)
            self.tokens.append(token)

    def file_of(self, name: str) -> Path:
        return self._folder / f"{name}.token"

    def of(self, name: str) -> ClientSecurity:
        return ClientSecurity(token_file=self.file_of(name), identity_dir=self.authority)


class Crew:
    """Workers that wait in the last round's training until they have been looked at."""

    def __init__(self, folder: Path, members: Members) -> None:
        self._folder = folder
        self._members = members
        self._there = threading.Barrier(3)
        self._released = threading.Event()
        self._loading = threading.Lock()

    def wait_for_last_round(self) -> None:
        """Returns once both train in it."""
        self._there.wait(120)

    def go_on(self) -> None:
        self._released.set()

    def work(self, server: str, name: str) -> ExitCode:
        rows = [
            {
                "text": f"{CANARY_TEXT} {LABELS[i % 3]} {i}",
                "label": LABELS[i % 3],
                "split": "test" if i % 5 == 0 else "train",
            }
            for i in range(20)
        ]
        path = write_jsonl(self._folder / f"{name}.jsonl", rows)
        data = DataConfig(path=str(path), split_column="split", held_out_fraction=0.2)
        config = WorkerConfig(
            server=server,
            name=name,
            device="cpu",
            metrics_address="127.0.0.1:0",
            data=data,
            token_file=self._members.file_of(name),
            identity_dir=self._members.authority,
        )

        def create(registration: Registration) -> LocalTrainer:
            # A model's head comes from torch's one generator, which these workers share.
            with self._loading:
                return self._marked(trainer_for(registration.run, data, rank=registration.rank))

        return ExitCode(run_worker(config, create_trainer=create))

    def _marked(self, trainer: LocalTrainer) -> LocalTrainer:
        adapter, train = trainer.adapter, trainer.train

        def marked_adapter() -> dict[str, Tensor]:
            tensors = adapter()
            tensors[min(tensors)].view(-1)[0] = CANARY_VALUE
            return tensors

        def held_train(work: Any, *arguments: Any, **options: Any) -> Any:
            outcome = train(work, *arguments, **options)
            if work.round == NUM_ROUNDS:
                self._there.wait(120)
                assert self._released.wait(120)
            return outcome

        trainer.adapter, trainer.train = marked_adapter, held_train  # type: ignore[method-assign]
        return trainer
