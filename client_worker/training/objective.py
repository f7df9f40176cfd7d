"""The loss, as sums: so that micro-batches add up exactly, whatever their sizes.

Shape suffixes: B rows, T tokens, V classes or vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_worker.data.collate import Batch
from client_worker.data.encoding import IGNORED

__all__ = ["ScoreSums", "forward", "loss_sum", "score_sums"]


@dataclass(frozen=True, slots=True)
class ScoreSums:
    """Sums over examples; for a causal LM of each example's mean over its targets."""

    loss: float
    correct: float


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits, B x V of a classifier or B x T x V of a causal LM, in float32."""
    logits: Tensor = model(**inputs).logits
    return logits.float()


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over all targets that are not IGNORED."""
    return cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def score_sums(logits: Tensor, batch: Batch) -> ScoreSums:
    """Loss and accuracy of a padded batch, one example a row."""
    targets_BT = batch.targets.view(batch.num_examples, -1)
    losses_BT = cross_entropy(
        logits.flatten(0, -2), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets_BT)
    counts_B = (targets_BT != IGNORED).sum(1).clamp(min=1)
    correct_BT = (logits.argmax(-1).view_as(targets_BT) == targets_BT) & (targets_BT != IGNORED)
    return ScoreSums(
        loss=float((losses_BT.sum(1) / counts_B).double().sum()),
        correct=float((correct_BT.sum(1) / counts_B).double().sum()),
    )
