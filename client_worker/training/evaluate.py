"""Scores of the adapter in the model on a set of examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from client_worker.data.batches import by_length
from client_worker.data.collate import pad
from client_worker.data.encoding import EncodedExample
from client_worker.training.objective import forward, score_sums
from client_worker.training.precision import Precision

__all__ = ["score", "shard"]

_BATCH_TOKENS = 4096
"""tokens of one forward pass, about: enough to keep a device busy, little memory"""


def shard(examples: Sequence[EncodedExample], index: int, count: int) -> list[EncodedExample]:
    """Every `count`-th example from `index` on: disjoint over the indices, all of them together."""
    return list(examples[index::count])


@torch.no_grad()
def score(
    model: nn.Module,
    examples: Sequence[EncodedExample],
    *,
    precision: Precision,
    pad_id: int,
    per_token: bool,
) -> Mapping[str, float]:
    """Means over examples; an example of a causal LM counts with the mean over its own targets.

    So the mean of shards, weighted by their numbers of examples, is exactly the whole's. Only
    perplexity is no mean, but exp(loss) of this set.

    Args:
        model: put in evaluation mode.
        examples: at least one.
        precision: device and autocast.
        pad_id: token to pad with.
        per_token: targets are tokens (causal LM).

    Returns:
        accuracy and loss (nats) of a classifier; loss, token_accuracy and perplexity of an LM.
    """
    model.eval()
    longest = max(e.num_tokens for e in examples)
    size = max(1, _BATCH_TOKENS // longest)
    loss, correct = 0.0, 0.0
    for chosen in by_length([e.num_tokens for e in examples], size):
        batch = pad([examples[i] for i in chosen], pad_id=pad_id, per_token=per_token)
        placed = batch.to(precision.device)
        with precision.autocast():
            logits = forward(model, placed.inputs)
        sums = score_sums(logits, placed)
        loss, correct = loss + sums.loss, correct + sums.correct
    mean_loss, mean_correct = loss / len(examples), correct / len(examples)
    if not per_token:
        return {"accuracy": mean_correct, "loss": mean_loss}
    # exp overflows beyond 709 nats, which is no model but noise.
    perplexity = math.exp(mean_loss) if mean_loss < 700 else math.inf
    return {"loss": mean_loss, "token_accuracy": mean_correct, "perplexity": perplexity}
