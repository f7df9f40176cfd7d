"""Federations for `../codecs.py`: rounds in one process, with every update in a codec.

Everything but the network is real: the quickstart's model and data, the workers' `LocalTrainer`,
their `UpdateCoder` with its residuals, aggregation over the coded files. What is shrunk is the
training: a few steps in a round, and a few rounds, over which the learning rate falls as it does
over a whole run.

One line of JSON per federation is appended to WORK/results.jsonl; one that is there is not run
again. The first round's training is the same in all federations of a seed and is done once.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shared.trainers import trainers_of
from torch import Tensor

from aggregator_service.aggregation import driver, registry
from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.contribution import Coding
from client_worker.coding import UpdateCoder
from client_worker.data.config import DataConfig
from client_worker.held import HeldAdapter
from client_worker.loading import LoadedTrainer
from client_worker.private_parts import PrivateParts
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.codecs.spec import CodecSpec
from fedlora.codecs.updates import create_codec
from fedlora.config import load_config
from fedlora.runs.method import MethodSpec
from fedlora.runs.plan import plan_for
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import (
    EvaluationScope,
    EvaluationSplit,
    Limits,
    Registration,
    Task,
    TaskKind,
)
from fedlora.tensors.safetensors_io import decode, encode

__all__ = [
    "Federation",
    "Party",
    "Result",
    "Shrunk",
    "changes_after",
    "federate",
    "parties",
    "results",
    "write_tensors",
]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrunk:
    """How long the federations train."""

    rounds: int
    steps: int
    """of 32 examples, by each worker in each round"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Federation:
    """One federation."""

    seed: int
    method: str
    codec: CodecSpec | None

    @property
    def label(self) -> str:
        """The codec, for people."""
        if self.codec is None:
            return "none"
        return self.codec.name.value + ("" if self.codec.error_feedback else ", no feedback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one."""

    seed: int
    method: str
    codec: str
    update_bytes: int
    """of one worker in one round"""
    product_errors: tuple[float, ...]
    """by round: what the codec made wrong of B A, over what the round's training changed of it;
    root mean square over workers"""
    accuracy: float
    loss: float
    """of the last adapter, on the test set"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A worker, and what its first round comes to, which no codec changes."""

    slot: int
    trainer: LocalTrainer
    first: dict[str, Tensor] = dataclasses.field(default_factory=dict)


def parties(seed: int, shrunk: Shrunk) -> tuple[RunSpec, list[Party]]:
    """The quickstart's workers, with other data and another first adapter for each seed."""
    overrides = [
        f"rounds.num_rounds={shrunk.rounds}",
        f"training.local_steps={shrunk.steps}",
        f"data.partition.seed={seed}",
        f"run.seed={seed}",
    ]
    config = load_config(
        ROOT / "examples/quickstart.toml", services={"data": DataConfig}, overrides=overrides
    )
    run, data = config.need_run(), config.build("data", DataConfig)
    # All before any of them is trained: they share the first adapter.
    made = trainers_of(run, data)
    return run, [Party(slot=slot, trainer=trainer) for slot, trainer in enumerate(made)]


def changes_after(seed: int, steps: int) -> dict[str, Tensor]:
    """What one worker's first round changes if it has that many steps."""
    run, (party, *_) = parties(seed, Shrunk(rounds=12, steps=steps))
    given = party.trainer.trained_values()
    _train(run, 1, party)
    return {name: value - given[name] for name, value in party.trainer.trained_values().items()}


def federate(
    federation: Federation, run: RunSpec, workers: list[Party], first: Path, work: Path
) -> Result:
    """Trains one federation from the version in `first` to its last round.

    Args:
        federation: which.
        run: the configuration of its seed.
        workers: of its seed.
        first: version 0.
        work: folder for the versions and for results.
    """
    run = dataclasses.replace(
        run, method=MethodSpec(name=federation.method), codec=federation.codec
    )
    recipe = registry.create_recipe(run.method)
    scratch = work / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    coders = [UpdateCoder(PrivateParts(scratch / f"residuals-{w.slot}")) for w in workers]
    start, state, errors, update_bytes = first, None, [], 0
    for number in range(1, run.rounds.num_rounds + 1):
        updates = [
            _update(run, recipe, number, start, party, coder, scratch)
            for party, coder in zip(workers, coders, strict=True)
        ]
        update_bytes = updates[0].path.stat().st_size
        squares = [
            _product_error(u, p, start, run) ** 2 for u, p in zip(updates, workers, strict=True)
        ]
        errors.append((sum(squares) / len(squares)) ** 0.5)
        output, kept = scratch / f"version-{number}", scratch / f"state-{number}"
        outcome = driver.aggregate(
            updates,
            recipe,
            output=output,
            state_output=kept,
            context=driver.RoundContext(round=number, start=_stored(start, run), state=state),
            rank=run.adapter.r,
            output_scaling=run.adapter.scaling,
            dtype=run.wire_dtype,
            seed=derive_seed(run.seed, number, "aggregate"),
        )
        start, state = output, kept if outcome.has_state else None
    trainer = workers[0].trainer
    trainer.load_adapter(_held(start, run, trainer).tensors)
    scores = trainer.evaluate(EvaluationScope.GLOBAL, round=1)
    test = next(s for s in scores if s.split is EvaluationSplit.TEST).metrics
    result = Result(
        seed=federation.seed,
        method=federation.method,
        codec=federation.label,
        update_bytes=update_bytes,
        product_errors=tuple(errors),
        accuracy=test["accuracy"],
        loss=test["loss"],
    )
    with (work / "results.jsonl").open("a") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")
    return result


def results(work: Path) -> list[Result]:
    """What has been measured so far."""
    file = work / "results.jsonl"
    if not file.exists():
        return []
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [Result(**{**line, "product_errors": tuple(line["product_errors"])}) for line in lines]


def _update(
    run: RunSpec,
    recipe: Recipe,
    number: int,
    start: Path,
    party: Party,
    coder: UpdateCoder,
    scratch: Path,
) -> driver.Contribution:
    """One worker's round: trained, coded, written to a file as the server would have it."""
    trainer = party.trainer
    held = _held(start, run, trainer)
    trainer.load_adapter(held.tensors)
    if number > 1 or not party.first:
        _train(run, number, party)
        if number == 1:
            party.first.update(trainer.trained_values())
    else:
        trainer.load_adapter(party.first)
    loaded = LoadedTrainer(
        trainer=trainer,
        assignment=(run, run.adapter.r, None),
        manifest=trainer.layout.manifest(run.adapter.r, run.wire_dtype),
        held=held,
    )
    task = Task(
        task_id=f"{number}/{party.slot}",
        kind=TaskKind.TRAIN,
        round=number,
        plan=plan_for(recipe.plans(), number),
    )
    registration = Registration(
        session_token="", run_id=run.name, run=run, rank=run.adapter.r, limits=Limits()
    )
    path = scratch / f"update-{number}-{party.slot}"
    write_tensors(path, coder.update(task, loaded, registration))
    coding = None
    if run.codec is not None:
        coding = Coding(codec=create_codec(run.codec), base=_stored(start, run))
    return driver.Contribution(
        worker=f"worker-{party.slot}",
        weight=trainer.num_train_examples,
        path=path,
        scaling=run.adapter.scaling,
        given_rank=run.adapter.r,
        coding=coding,
    )


def _train(run: RunSpec, number: int, party: Party) -> None:
    seed = derive_seed(run.seed, number, "train", party.slot)
    party.trainer.train(RoundWork(round=number, seed=seed))


def _product_error(update: driver.Contribution, party: Party, start: Path, run: RunSpec) -> float:
    """||read - trained|| / ||trained - given|| of the products of all modules."""
    trained = party.trainer.trained_values()
    wrong = changed = 0.0
    with update.open() as read, AdapterFile(start, run.adapter.scaling, "start") as given:
        for module in read.modules:
            a, b = (trained[read.key(module, part)].double() for part in read.parts(module))
            product = run.adapter.scaling(run.adapter.r) * (b @ a)
            wrong += float((read.factors(module).delta_weight() - product).square().sum())
            changed += float((given.factors(module).delta_weight() - product).square().sum())
    return (wrong / changed) ** 0.5


def _held(version: Path, run: RunSpec, trainer: LocalTrainer) -> HeldAdapter:
    manifest = trainer.layout.manifest(run.adapter.r, run.wire_dtype)
    return HeldAdapter(tensors=decode(version, manifest))


def _stored(version: Path, run: RunSpec) -> driver.StoredAdapter:
    return driver.StoredAdapter(path=version, scaling=run.adapter.scaling)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """A safetensors file of them."""
    path.write_bytes(b"".join(chunk for _, chunk in encode(tensors).chunks(0, 2**20)))
    return path
