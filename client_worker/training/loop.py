"""One round of local training: the adapter and the modules trained in full, step by step.

The same adapter, data, seed and round give the same bits on one machine's CPU: the order of the
examples, dropout and everything else random come from the seed, and the optimiser starts anew.

A step's gradient is that of the mean over the *step's* targets. Each micro-batch contributes its
sum of losses divided by the number of targets of the whole step, so that the step is the same
however it is cut into forward passes, also where they hold unequal numbers of tokens. The cut is
the run's, or a finer one where the device has no room (`client_worker.training.micro_batch`).

Where float16's gradients overflow, the loss scaler skips the optimiser's step: that batch is lost,
no step is counted, no hook is told of one. The learning rate goes by batches, whether a step came
of them or not.

What goes into a step besides the loss are hooks (`fedlora.plugins.base`); where there are none, no
operation is added.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog
import torch
from torch import Tensor, nn

from client_worker.adaptation.polar import StandIns
from client_worker.data.batches import batches_of_round, num_steps
from client_worker.data.collate import Batch, pack, pad
from client_worker.data.encoding import EncodedExample
from client_worker.training.micro_batch import MicroBatch
from client_worker.training.objective import criterion_sum, forward, loss_sum
from client_worker.training.precision import Precision
from client_worker.training.schedule import round_factor, step_factor
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import LocalHooks
from fedlora.runs.seeds import derive_seed
from fedlora.runs.training import OptimizerName, TrainingSpec

__all__ = ["Course", "RoundResult", "TaskAbandoned", "train_round"]

log = structlog.get_logger(__name__)


class TaskAbandoned(Exception):  # noqa: N818 - an outcome, not an error
    """Training ended because its result no longer counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundResult:
    """What a round came to."""

    num_steps: int
    """that the optimiser made; fewer than there were batches where some were skipped"""
    num_processed: int
    """examples seen, counting repeats"""
    mean_loss: float
    """over all targets, as they were met"""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a round stands in its run."""

    round: int
    num_rounds: int
    seed: int


def train_round(
    model: nn.Module,
    parameters: tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]],
    examples: Sequence[EncodedExample],
    spec: TrainingSpec,
    course: Course,
    *,
    precision: Precision,
    micro_batch: MicroBatch,
    pad_id: int,
    per_token: bool,
    on_progress: Callable[[int, int, Mapping[str, float]], None],
    should_abandon: Callable[[], bool],
    lora_b: Collection[nn.Parameter] = (),
    offsets_V: Tensor | None = None,
    stand_ins: Sequence[StandIns] = (),
    hooks: Sequence[LocalHooks] = (),
) -> RoundResult:
    """Trains in place.

    Args:
        model: with gradients where something is to be trained.
        parameters: the adapter's factors, and those of modules trained in full.
        examples: at least one.
        spec: how to train.
        course: round and seed.
        precision: device and autocast.
        micro_batch: how many examples a forward pass takes; lowered where they find no room.
        pad_id: token to pad with.
        per_token: targets are tokens (causal LM).
        on_progress: called after each batch with batches done, batches in all, and loss and rate.
        should_abandon: asked before each step.
        lora_b: those of the factors with `b_learning_rate_ratio` times the rate.
        offsets_V: added to the logits (`objective.label_offsets`) for cross-entropy.
        stand_ins: where `parameters` are trained in the place of tensors of the model.
        hooks: what else goes into a step, in this order; one of them may have a criterion.

    Raises:
        TaskAbandoned: once `should_abandon` says so.
        FedLoraError: NOT_FINITE if the loss is not; DEVICE_OUT_OF_MEMORY if one example finds no
            room.
    """
    steps = num_steps(
        len(examples),
        batch_size=spec.batch_size,
        local_epochs=spec.local_epochs,
        local_steps=spec.local_steps,
    )
    optimizer = _optimizer(parameters, spec, lora_b)
    made = _counted(optimizer)
    peaks = [group["lr"] for group in optimizer.param_groups]
    share = round_factor(spec.schedule, round=course.round, num_rounds=course.num_rounds)
    scaler = precision.scaler()
    order = batches_of_round(
        [e.num_tokens for e in examples],
        batch_size=spec.batch_size,
        steps=steps,
        generator=torch.Generator().manual_seed(derive_seed(course.seed, course.round, "order")),
    )
    targets_loss = _criterion(hooks, offsets_V)
    began = time.perf_counter()
    total_loss, total_targets, processed = 0.0, 0, 0
    model.train()
    with _seeded(precision.device, derive_seed(course.seed, course.round, "dropout")):
        for step, chosen in enumerate(order):
            if should_abandon():
                raise TaskAbandoned
            factor = share * step_factor(
                step, num_steps=steps, warmup_fraction=spec.warmup_fraction
            )
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            batches = functools.partial(
                _batches, [examples[i] for i in chosen], spec, pad_id, per_token
            )
            passes = functools.partial(
                micro_batch.fitting,
                functools.partial(_backward, model, batches, precision, scaler, targets_loss),
                min(len(chosen), micro_batch.size(spec)),
                model=model,
                precision=precision,
            )
            find = functools.partial(
                _gradients, passes, scaler, hooks, stand_ins, (step + 1, course.round)
            )
            loss, targets = find()
            with torch.no_grad():
                for hook in hooks:
                    if hook.step is not None:
                        hook.step(functools.partial(_again, optimizer, find))
            scaler.unscale_(optimizer)
            with torch.no_grad():
                for hook in hooks:
                    if hook.edit_gradients is not None:
                        hook.edit_gradients()
            if spec.max_gradient_norm > 0:
                nn.utils.clip_grad_norm_(itertools.chain(*parameters), spec.max_gradient_norm)
            before = made()
            scaler.step(optimizer)
            scaler.update()
            if made() > before:
                with torch.no_grad():
                    for hook in hooks:
                        if hook.after_step is not None:
                            hook.after_step(factor)
            optimizer.zero_grad(set_to_none=True)
            for stand_in in stand_ins:
                stand_in.push()
            total_loss, total_targets = total_loss + loss, total_targets + targets
            processed += len(chosen)
            on_progress(
                step + 1,
                steps,
                {"train_loss": loss / targets, "learning_rate": spec.learning_rate * factor},
            )
    if made() < steps:
        log.info("steps_skipped", round=course.round, made=made(), batches=steps)
    return RoundResult(
        num_steps=made(),
        num_processed=processed,
        mean_loss=total_loss / total_targets,
        seconds=time.perf_counter() - began,
    )


def _criterion(
    hooks: Sequence[LocalHooks], offsets_V: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes the sum of losses of logits and targets."""
    own = [hook.criterion for hook in hooks if hook.criterion is not None]
    if not own:
        return functools.partial(loss_sum, offsets_V=offsets_V)
    (criterion,) = own
    return functools.partial(criterion_sum, criterion, offsets_V=offsets_V)


def _gradients(
    passes: Callable[[], tuple[float, int]],
    scaler: torch.amp.GradScaler,
    hooks: Sequence[LocalHooks],
    stand_ins: Sequence[StandIns],
    place: tuple[int, int],
) -> tuple[float, int]:
    """Puts the gradients of a step's loss and penalties beside what is trained, still scaled.

    Returns:
        What `passes` does: the sum of losses over the step's targets, and how many these are.
    """
    loss, targets = passes()
    if not math.isfinite(loss):
        step, round = place
        raise FedLoraError(
            Reason.NOT_FINITE,
            f"the training loss is {loss} in step {step} of round {round}",
            hint="Lower training.learning_rate, or set training.max_gradient_norm",
        )
    for hook in hooks:
        if hook.penalty is not None:
            scaler.scale(hook.penalty()).backward()  # type: ignore[no-untyped-call]
    for stand_in in stand_ins:
        stand_in.pull()
    return loss, targets


def _again(optimizer: torch.optim.Optimizer, find: Callable[[], object]) -> None:
    """The gradients at what is trained by now, in place of those that are there."""
    optimizer.zero_grad(set_to_none=True)
    with torch.enable_grad():
        find()


def _backward(
    model: nn.Module,
    batches: Callable[[int], Sequence[Batch]],
    precision: Precision,
    scaler: torch.amp.GradScaler,
    targets_loss: Callable[[Tensor, Tensor], Tensor],
    size: int,
) -> tuple[float, int]:
    """Adds the gradient of a step's mean loss, in passes of `size` examples.

    Returns:
        The sum of losses over its targets, and how many these are.
    """
    loss, cut = 0.0, batches(size)
    targets = max(1, sum(batch.num_targets for batch in cut))
    for batch in cut:
        placed = batch.to(precision.device)
        with precision.autocast():
            logits = forward(model, placed.inputs)
        summed = targets_loss(logits, placed.targets)
        scaler.scale(summed / targets).backward()  # type: ignore[no-untyped-call]
        loss += float(summed.detach())
    return loss, targets


def _optimizer(
    parameters: tuple[Sequence[nn.Parameter], Sequence[nn.Parameter]],
    spec: TrainingSpec,
    lora_b: Collection[nn.Parameter],
) -> torch.optim.Optimizer:
    factors, head = parameters
    fast = {id(p) for p in lora_b} if spec.b_learning_rate_ratio != 1 else set()
    groups = [{"params": [p for p in factors if id(p) not in fast], "lr": spec.learning_rate}]
    if fast:
        rate = spec.learning_rate * spec.b_learning_rate_ratio
        groups.append({"params": [p for p in factors if id(p) in fast], "lr": rate})
    if head:
        groups.append({"params": list(head), "lr": spec.head_learning_rate or spec.learning_rate})
    if spec.optimizer is OptimizerName.SGD:
        return torch.optim.SGD(groups, momentum=spec.momentum, weight_decay=spec.weight_decay)
    return torch.optim.AdamW(groups, weight_decay=spec.weight_decay)


def _counted(optimizer: torch.optim.Optimizer) -> Callable[[], int]:
    """How many steps an optimiser has made since: a loss scaler does not say if it made one."""
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    optimizer.register_step_post_hook(count)
    return lambda: made


def _batches(
    examples: Sequence[EncodedExample], spec: TrainingSpec, pad_id: int, per_token: bool, size: int
) -> list[Batch]:
    """A step's examples, cut into passes of `size`."""
    parts = [examples[begin : begin + size] for begin in range(0, len(examples), size)]
    if spec.packing:
        return [pack(part, pad_id=pad_id, max_tokens=spec.max_sequence_tokens) for part in parts]
    return [pad(part, pad_id=pad_id, per_token=per_token) for part in parts]


@contextlib.contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Global generators run from `seed` inside, and are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
