"""A trainer of two small tensors: what a worker's runner needs, without a model."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import torch

from client_worker.training.loop import TaskAbandoned
from client_worker.training.round_work import RoundWork
from fedlora.adapters.names import Part, extra_key, parse_key
from fedlora.adapters.spec import AdaptedModule, AdapterLayout
from fedlora.runs.plan import RoundPlan
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit, Registration
from fedlora.tensors.manifest import DataType, TensorManifest
from fedlora.tensors.safetensors_io import encode

LAYOUT = AdapterLayout(
    modules=(AdaptedModule(path="layer.query", in_features=24, out_features=40),),
    saved_tensors=(),
    base_fingerprint="sha256:tiny",
)

STEPS = 3


@dataclass(frozen=True)
class TinyOutcome:
    """What `TinyTrainer.train` returns."""

    num_examples: int
    metrics: Mapping[str, float]
    sent_extras: Mapping[str, torch.Tensor] = field(default_factory=dict)
    kept_extras: Mapping[str, torch.Tensor] = field(default_factory=dict)


class TinyTrainer:
    """Adds seeded noise to its adapter and calls that training.

    Args:
        registration: what it is made for.
        on_step: called in each step of training, for a test to act or wait in.
        endless: trains until it is told to abandon.
        endless_from: first round that is so.
    """

    layout = LAYOUT

    def __init__(
        self,
        registration: Registration,
        *,
        on_step: Callable[[int], None] = lambda _: None,
        endless: bool = False,
        endless_from: int = 1,
    ) -> None:
        self.registration = registration
        self.loads: list[float] = []
        self.trained: list[tuple[int, int]] = []
        self.evaluated: list[tuple[EvaluationScope, int, int]] = []
        self.thread = threading.current_thread()
        self._on_step = on_step
        self._endless_from = endless_from if endless else math.inf
        self._tensors = adapter(seed=0, rank=registration.rank)

    @property
    def rank(self) -> int:
        return self.registration.rank

    def begin(self, plan: RoundPlan) -> None:
        pass

    def adapter(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self._tensors.items()}

    def trained_values(self) -> dict[str, torch.Tensor]:
        return self.adapter()

    def load_adapter(
        self,
        tensors: Mapping[str, torch.Tensor],
        private: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        assert set(tensors) >= set(adapter(seed=0))
        laid_over = {**tensors, **(private or {})}
        self._tensors = {name: tensor.clone() for name, tensor in laid_over.items()}
        self.loads.append(float(next(iter(self._tensors.values())).sum()))

    def train(self, work: RoundWork, extras: Mapping[str, torch.Tensor]) -> TinyOutcome:
        step = 0
        while step < STEPS or work.round >= self._endless_from:
            step += 1
            self._on_step(step)
            if work.should_abandon():
                raise TaskAbandoned
            work.on_progress(step, STEPS, {"loss": 1.0 / step, "odd": float("nan")})
        noise = adapter(seed=work.seed, rank=self.registration.rank)
        parts = {*work.plan.trained, *work.plan.private}
        for name, tensor in self._tensors.items():
            if parse_key(name).part in parts:
                self._tensors[name] = tensor + self._share(name) * noise[name]
        self.trained.append((work.round, work.seed))
        metrics = {"train_loss": 0.5, "train_seconds": 0.1, "grad_norm": float("inf")}
        return TinyOutcome(num_examples=64, metrics=metrics)

    def _share(self, name: str) -> float:
        """How much of the noise a tensor takes."""
        return 1.0

    def evaluate(
        self, scope: EvaluationScope, *, round: int, shard_index: int = 0, shard_count: int = 1
    ) -> tuple[Evaluation, ...]:
        self.evaluated.append((scope, shard_index, shard_count))
        return (
            Evaluation(
                scope=scope,
                split=EvaluationSplit.HELD_OUT,
                num_examples=10,
                metrics={"accuracy": 0.5},
            ),
        )


class CoupledTrainer(TinyTrainer):
    """Moves each tensor by what the others are, as real training does.

    So a part that is sent shows what became of one that is not.
    """

    def train(self, work: RoundWork, extras: Mapping[str, torch.Tensor]) -> TinyOutcome:
        """As ever; in a run with SCAFFOLD with its control variates, as one step at rate 1."""
        given = dict(self._tensors)
        outcome = super().train(work, extras)
        if not work.plan.sent_extras:
            return outcome
        sent, kept = {}, {}
        for name, tensor in self._tensors.items():
            c = extras.get(extra_key("scaffold/c", name), torch.zeros_like(tensor))
            own = extras.get(extra_key("scaffold/c_u", name), torch.zeros_like(tensor))
            self._tensors[name] = tensor - (c - own)
            change = given[name] - self._tensors[name] - c
            sent[extra_key("scaffold/dc", name)] = change
            kept[extra_key("scaffold/c_u", name)] = own + change
        return replace(outcome, sent_extras=sent, kept_extras=kept)

    def _share(self, name: str) -> float:
        return sum(float(t.abs().mean()) for n, t in self._tensors.items() if n != name)


def adapter(*, seed: int, rank: int = 4) -> dict[str, torch.Tensor]:
    """An adapter of the tiny layout with seeded entries."""
    generator = torch.Generator().manual_seed(seed)
    manifest = LAYOUT.manifest(rank, DataType.F32)
    return {t.name: torch.randn(t.shape, generator=generator) for t in manifest.tensors}


def adapter_file(
    *, seed: int, rank: int = 4, parts: Collection[Part] = (Part.A, Part.B)
) -> tuple[bytes, TensorManifest]:
    """The same, or some of its parts, as a payload and its manifest."""
    tensors = adapter(seed=seed, rank=rank)
    payload = encode({name: t for name, t in tensors.items() if parse_key(name).part in parts})
    data = b"".join(bytes(piece) for _, piece in payload.chunks(0, 1024))
    return data, payload.manifest
