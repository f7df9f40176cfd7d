"""Scores of the adapter in the model on a set of examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from client_worker.data.batches import by_length
from client_worker.data.collate import Batch, pad
from client_worker.data.encoding import EncodedExample
from client_worker.training.loop import TaskAbandoned
from client_worker.training.micro_batch import in_parts
from client_worker.training.objective import (
    ScoreSums,
    example_losses,
    forward,
    label_counts,
    score_sums,
)
from client_worker.training.precision import Precision
from fedlora.runs.label_counts import LabelCounts

__all__ = ["Scores", "evenly", "losses", "score", "shard"]

T = TypeVar("T")

_BATCH_TOKENS = {"cpu": 512}
"""tokens of one forward pass, about, by type of device: what of it stays in a core's cache, where a
batch of 4096 takes a third longer (22 M parameters, one thread)"""
_MOST_BATCH_TOKENS = 4096
"""the same for every other type: enough to keep a device busy, little memory"""

_MOST_NATS = 640.0
"""a loss of more is no model but noise, and its exp more than a server takes"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one set of examples came to."""

    metrics: Mapping[str, float]
    label_counts: LabelCounts | None = None
    """of a classifier"""


def shard(examples: Sequence[EncodedExample], index: int, count: int) -> list[EncodedExample]:
    """Every `count`-th example from `index` on: disjoint over the indices, all of them together."""
    return list(examples[index::count])


def evenly(examples: Sequence[T], share: float) -> list[T]:
    """A share of them, the same each time, rounded up: some of each part of their order."""
    chosen = math.ceil(share * len(examples))
    return [examples[i * len(examples) // chosen] for i in range(chosen)]


def _passes(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    of_batch: Callable[[Tensor, Batch], T],
    *,
    precision: Precision,
    pad_id: int,
    per_token: bool,
) -> Iterator[T]:
    """What `of_batch` makes of the logits of all examples, those of like length together.

    Batches are of a size for a forward pass on the device, smaller where it has no room for that.
    """

    def one_pass(chosen: Sequence[int]) -> T:
        batch = pad([examples[i] for i in chosen], pad_id=pad_id, per_token=per_token)
        placed = batch.to(precision.device)
        with precision.autocast():
            logits = forward(model, placed.inputs)
        return of_batch(logits, placed)

    most = _BATCH_TOKENS.get(precision.device.type, _MOST_BATCH_TOKENS)
    for chosen in by_length([e.num_tokens for e in examples], most):
        yield from in_parts(one_pass, chosen, precision=precision)


@torch.no_grad()
def score(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    precision: Precision,
    pad_id: int,
    per_token: bool,
    offsets_V: Tensor | None = None,
) -> Scores:
    """Means over examples; an example of a causal LM counts with the mean over its own targets.

    So the mean of shards, weighted by their numbers of examples, is exactly the whole's. Only
    perplexity is no mean, but exp(loss) of this set; and what is made of a classifier's counts by
    label is made of their sums.

    An example of an LM is an exact match if each of its target tokens has the largest logit after
    the true tokens before it. By induction these are the tokens that greedy decoding gives: as long
    as it has given the true ones, it goes on from them. So nothing needs to be generated.

    Args:
        model: put in evaluation mode.
        examples: at least one.
        precision: device and autocast.
        pad_id: token to pad with.
        per_token: targets are tokens (causal LM).
        offsets_V: added to a classifier's logits.

    Returns:
        accuracy, loss (nats) and counts by label of a classifier; loss, token_accuracy, exact_match
        and perplexity of an LM.
    """

    def of_batch(logits: Tensor, batch: Batch) -> tuple[ScoreSums, Tensor | None]:
        if offsets_V is not None:
            logits = logits + offsets_V.to(logits.device)
        counted = None if per_token else label_counts(logits, batch.targets)
        return score_sums(logits, batch), counted

    model.eval()
    loss, correct, exact = 0.0, 0.0, 0.0
    counts: list[Tensor] = []
    for sums, counted in _passes(
        model, examples, of_batch, precision=precision, pad_id=pad_id, per_token=per_token
    ):
        loss, correct, exact = loss + sums.loss, correct + sums.correct, exact + sums.exact
        if counted is not None:
            counts.append(counted)
    mean_loss, mean_correct = loss / len(examples), correct / len(examples)
    if not per_token:
        right, predicted, present = (tuple(row) for row in torch.stack(counts).sum(0).tolist())
        return Scores(
            metrics={"accuracy": mean_correct, "loss": mean_loss},
            label_counts=LabelCounts(correct=right, predicted=predicted, present=present),
        )
    perplexity = math.exp(mean_loss) if mean_loss < _MOST_NATS else math.inf
    return Scores(
        metrics={
            "loss": mean_loss,
            "token_accuracy": mean_correct,
            "exact_match": exact / len(examples),
            "perplexity": perplexity,
        }
    )


@torch.no_grad()
def losses(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    precision: Precision,
    pad_id: int,
    per_token: bool,
    should_abandon: Callable[[], bool],
) -> Tensor:
    """The loss of each example, in no order that means anything; float64, on the CPU.

    Args:
        model: put in evaluation mode.
        examples: at least one.
        precision: device and autocast.
        pad_id: token to pad with.
        per_token: targets are tokens (causal LM); an example's loss is their mean.
        should_abandon: asked in each batch.

    Raises:
        TaskAbandoned: once `should_abandon` says so.
    """

    def of_batch(logits: Tensor, batch: Batch) -> Tensor:
        if should_abandon():
            raise TaskAbandoned
        return example_losses(logits, batch).cpu()

    model.eval()
    found = _passes(
        model, examples, of_batch, precision=precision, pad_id=pad_id, per_token=per_token
    )
    return torch.cat(list(found))
