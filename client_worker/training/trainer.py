"""The worker's model, adapter and data in one object: what the runner asks to train and score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from client_worker.adaptation.adapted_model import AdaptedModel
from client_worker.adaptation.polar import StandIns, direction_stand_ins, magnitude_stand_ins
from client_worker.data.config import DataConfig
from client_worker.data.encoding import EncodedExample
from client_worker.training.evaluate import evenly, losses, score, shard
from client_worker.training.experiences import Experiences
from client_worker.training.loop import Course, TaskAbandoned, train_round
from client_worker.training.material import EncodedData, load_material
from client_worker.training.micro_batch import MicroBatch
from client_worker.training.plugin_rounds import (
    checked,
    flat_endings,
    local_round,
    snapshot,
    with_memory,
)
from client_worker.training.precision import Precision
from client_worker.training.rank_pruning import Tail
from client_worker.training.round_metrics import RoundMetrics
from client_worker.training.round_work import RoundWork
from client_worker.training.stages import (
    Stage,
    personal_axis,
    personal_stage,
    refinement,
    round_stage,
)
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterLayout, TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import LocalHooks, LocalRound, create_plugins
from fedlora.runs.plan import RoundPlan
from fedlora.runs.seeds import derive_seed
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import DataSlot, Evaluation, EvaluationScope, EvaluationSplit
from fedlora.tensors.manifest import DataType

__all__ = ["LocalTrainer", "TaskAbandoned", "TrainingOutcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOutcome:
    """What a round of local training came to."""

    num_examples: int
    """size of the data trained on, n_u of the weighted mean; passes over it do not count. 0 where
    no step was made"""
    num_steps: int
    metrics: Mapping[str, float]
    """train_loss, train_seconds, examples_per_second, peak_device_bytes, micro_batch_size (examples
    a forward pass, at the end), and what the plan asks"""
    sent_extras: Mapping[str, Tensor] = field(default_factory=dict)
    """what plug-ins send beside the adapter, by key: on the CPU, in float32"""
    kept_extras: Mapping[str, Tensor] = field(default_factory=dict)
    """what they keep, likewise"""


class LocalTrainer:
    """Trains and scores one adapter on one worker's data. `create` makes it."""

    def __init__(
        self, run: RunSpec, model: AdaptedModel, data: EncodedData, precision: Precision
    ) -> None:
        self._run = run
        self._plugins = create_plugins(run.plugins)
        self._model = model
        self._data = data
        self._experiences = Experiences(run, data)
        self._precision = precision
        self._micro_batch = MicroBatch()
        self._per_token = run.adapter.task_type is TaskType.CAUSAL_LM

    @classmethod
    def create(
        cls,
        run: RunSpec,
        *,
        rank: int,
        data: DataConfig,
        slot: DataSlot | None,
        device: str,
        cache_dir: Path | None = None,
        threads: int = 0,
    ) -> Self:
        """Reads the data, loads the base model and attaches a fresh adapter.

        Args:
            run: the run's specification.
            rank: of this worker's adapter.
            data: this worker's files.
            slot: its part of an experiment's file; None where all of it is its own.
            device: as `client_worker.device.resolve_device` returned it.
            cache_dir: base models from the hub are kept below it; None for the hub's own place.
            threads: of torch on the CPU; 0 for its default, at most the container's cores.

        Raises:
            FedLoraError: INVALID_DATA, INVALID_CONFIG, INVALID_MODEL, BASE_MISMATCH,
                UNSUPPORTED_METHOD or MISSING_EXTRA, each with the way out.
        """
        model, encoded, precision = load_material(
            run,
            rank=rank,
            data=data,
            slot=slot,
            device=device,
            cache_dir=cache_dir,
            threads=threads,
        )
        return cls(run, model, encoded, precision)

    @property
    def layout(self) -> AdapterLayout:
        """Where the adapter sits in the base model, and that model's fingerprint."""
        return self._model.shape.layout

    @property
    def module(self) -> nn.Module:
        """The model, as it computes."""
        module: nn.Module = self._model.module
        return module

    @property
    def rank(self) -> int:
        """Of the adapter now: what was attached, or less once a plan has let it be lowered."""
        return self._model.shape.rank

    @property
    def num_train_examples(self) -> int:
        """Examples to train on, in one round or another; held-out ones are not among them."""
        return len(self._data.train)

    def begin(self, plan: RoundPlan) -> None:
        """Makes a freshly attached adapter one that such plans can train: with cores, or as it is.

        Args:
            plan: names the parts of the run's first version as those that are trained.
        """
        if Part.CORE in plan.trained:
            self._model.begin_with_cores(self._run.seed)

    def adapter(self) -> dict[str, Tensor]:
        """The adapter as it is now, under PEFT's names: on the CPU, in the run's wire dtype."""
        return self._model.state()

    def trained_values(self) -> dict[str, Tensor]:
        """The same in the precision of training, float32."""
        return self._model.state(DataType.F32)

    def load_adapter(
        self, tensors: Mapping[str, Tensor], private: Mapping[str, Tensor] | None = None
    ) -> None:
        """Puts an adapter into the model, all of it or none.

        Args:
            tensors: the global adapter.
            private: tensors that take the place of the global ones, as `trained_values` gave them.

        Raises:
            FedLoraError: MANIFEST_MISMATCH unless names, shapes and dtypes are this adapter's.
        """
        self._model.load_state(tensors, private)

    def train(self, work: RoundWork, extras: Mapping[str, Tensor] | None = None) -> TrainingOutcome:
        """One round of local training, from the adapter that is in the model.

        Args:
            work: what to train, and when to end.
            extras: what the run's plug-ins have kept, and are given beside the adapter, by key.

        Raises:
            TaskAbandoned: once `work.should_abandon` says so; the adapter is then half trained.
            FedLoraError: NOT_FINITE if the loss is not.
        """
        self._precision.forget_peak()
        figures = RoundMetrics(
            work.plan,
            lambda: losses(
                self._model.module,
                self._data.train,
                precision=self._precision,
                pad_id=self._model.pad_id,
                per_token=self._per_token,
                should_abandon=work.should_abandon,
            ),
        )
        a, b = self._model.factors(Part.A), self._model.factors(Part.B)
        tail = Tail(work.plan, self.rank, a, b)
        stage = round_stage(self._run.training, work.plan)
        hooks = self._hooks(work, stage, extras or {})
        outcome = self._stretch(work, stage, hooks=(tail.hooks, *hooks.values()))
        with torch.no_grad():
            ends = {name: hook.end() for name, hook in hooks.items() if hook.end is not None}
            for hook in hooks.values():
                if hook.edit_update is not None:
                    hook.edit_update()
        measured, sent, kept = flat_endings(ends)
        self._model.resize(tail.rank_at_end())
        return replace(
            outcome,
            metrics={**outcome.metrics, **figures.at_end(), **measured},
            sent_extras=sent,
            kept_extras=kept,
        )

    def refine(self, work: RoundWork) -> TrainingOutcome:
        """The stage on a server's own data, after a round; errors as `train`."""
        return self._stretch(work, refinement(self._run.training, work.plan))

    def personalise(self, work: RoundWork, own: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Trains this worker's own magnitudes of B on the adapter in the model; errors as `train`.

        Args:
            work: what to train, and when to end.
            own: what the stage before this one returned; None begins with B's own.

        Returns:
            The magnitudes by path of the module, one a vector of B: on the CPU, in float32.
        """
        stage = personal_stage(self._run.training, work.plan)
        dim = personal_axis(work.plan).summed(Part.B)
        magnitudes = magnitude_stand_ins(self._model.factors(Part.B), own, dim=dim)
        self._stretch(work, stage, [magnitudes])
        return {path: b_N.detach().to("cpu", copy=True) for path, b_N in magnitudes.trained.items()}

    def train_own(self, work: RoundWork, own: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Trains this worker's own adapter beside the global one in the model; errors as `train`.

        Args:
            work: what to train, and when to end.
            own: what the round before returned; None begins with the global adapter.

        Returns:
            Its tensors by their names in PEFT: on the CPU, in float32.
        """
        stage = round_stage(self._run.training, work.plan)
        tensors = self._model.named(stage.parts, full_modules=stage.full_modules)
        given = snapshot(tensors)
        for name, values in (own or {}).items():
            tensors[name].data.copy_(values)
        seen = self._seen(work, stage, given)
        own_hooks = [checked(p, p.personal(seen)) for p in self._plugins if p.traits.personal]
        self._stretch(replace(work, seed=derive_seed(work.seed, "own")), stage, hooks=own_hooks)
        return {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}

    def _hooks(
        self, work: RoundWork, stage: Stage, extras: Mapping[str, Tensor]
    ) -> dict[str, LocalHooks]:
        """What each of the run's plug-ins does in a stage that is about to begin."""
        if not self._plugins:
            return {}
        given = snapshot(self._model.named(stage.parts, full_modules=stage.full_modules))
        seen = self._seen(work, stage, given)
        return {p.name: checked(p, p.local(with_memory(seen, p, extras))) for p in self._plugins}

    def _seen(self, work: RoundWork, stage: Stage, given: Mapping[str, Tensor]) -> LocalRound:
        """A stage as the run's plug-ins see it."""
        counts = self._experiences.class_counts(work.round)
        return local_round(self._plugins, self._model, stage, self._run.adapter, given, counts)

    def _stretch(
        self,
        work: RoundWork,
        stage: Stage,
        stand_ins: Sequence[StandIns] = (),
        *,
        hooks: Sequence[LocalHooks] = (),
    ) -> TrainingOutcome:
        """Trains what a stage says, or what stands in for it.

        Where the worker has no example of what joined in a continual run, it trains nothing.
        """
        examples = self._experiences.train(work.round)
        if not examples:
            return TrainingOutcome(num_examples=0, num_steps=0, metrics={})
        factors, head = self._model.trainable(stage.parts, full_modules=stage.full_modules)
        if stage.directions is not None:
            stand_ins = [
                direction_stand_ins(self._model.factors(part), dim=stage.directions.summed(part))
                for part in sorted(stage.parts)
            ]
        trained = [t for stand_in in stand_ins for t in stand_in.trained.values()]
        result = train_round(
            self._model.module,
            (trained or factors, head),
            examples,
            stage.training,
            Course(round=work.round, num_rounds=self._run.rounds.num_rounds, seed=work.seed),
            precision=self._precision,
            micro_batch=self._micro_batch,
            pad_id=self._model.pad_id,
            per_token=self._per_token,
            on_progress=work.on_progress,
            should_abandon=work.should_abandon,
            lora_b=self._model.factors(Part.B).values(),
            offsets_V=self._experiences.train_offsets(work.round),
            stand_ins=stand_ins,
            hooks=hooks,
        )
        return TrainingOutcome(
            num_examples=len(examples) if result.num_steps else 0,
            num_steps=result.num_steps,
            metrics={
                "train_loss": result.mean_loss,
                "train_seconds": result.seconds,
                "examples_per_second": result.num_processed / result.seconds,
                "peak_device_bytes": float(self._precision.peak_bytes()),
                "micro_batch_size": float(self._micro_batch.size(stage.training)),
            },
        )

    def evaluate(
        self, scope: EvaluationScope, *, round: int, shard_index: int = 0, shard_count: int = 1
    ) -> tuple[Evaluation, ...]:
        """Scores of the adapter in the model; nothing for a set that has no examples.

        Of a continual run's, each experience that has joined by the round for itself.

        Args:
            scope: LOCAL scores the held-out examples; GLOBAL also a shard of the test set.
            round: that the scores are of.
            shard_index: which shard, from 0.
            shard_count: how many workers share the test set.

        Raises:
            FedLoraError: INVALID_ARGUMENT for a shard that does not exist.
        """
        if not 0 <= shard_index < shard_count:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"there is no shard {shard_index} of {shard_count} (they are counted from 0)",
            )
        rules = self._run.rounds
        share = rules.held_out_share if round < rules.num_rounds else 1.0
        sets = {EvaluationSplit.HELD_OUT: evenly(self._data.held_out, share)}
        if scope is EvaluationScope.GLOBAL:
            sets[EvaluationSplit.TEST] = shard(self._data.test, shard_index, shard_count)
        return tuple(
            self._evaluation(scope, split, chosen, round, experience)
            for split, examples in sets.items()
            for experience, chosen in self._experiences.scored(examples, round)
            if chosen
        )

    def _evaluation(
        self,
        scope: EvaluationScope,
        split: EvaluationSplit,
        examples: Sequence[EncodedExample],
        round: int,
        experience: int | None,
    ) -> Evaluation:
        scores = score(
            self._model.module,
            examples,
            precision=self._precision,
            pad_id=self._model.pad_id,
            per_token=self._per_token,
            offsets_V=self._experiences.score_offsets(round),
        )
        return Evaluation(
            scope=scope,
            split=split,
            num_examples=len(examples),
            metrics=scores.metrics,
            label_counts=scores.label_counts,
            experience=experience,
        )
