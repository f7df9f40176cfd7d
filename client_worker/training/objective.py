"""The loss, as sums: so that micro-batches add up exactly, whatever their sizes.

Shape suffixes: B rows, T tokens, V classes or vocabulary, N some of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from client_worker.data.collate import Batch
from client_worker.data.encoding import IGNORED

__all__ = ["ABSENT", "ScoreSums", "class_counts", "criterion_sum", "example_losses", "forward"]
__all__ += ["label_counts", "label_offsets", "loss_sum", "score_sums"]

ABSENT = -1e4
"""offset of a label the worker does not have: its probability, and so its gradient, is exactly 0
in float32. A merely tiny gradient would not do, because Adam divides by its size."""


@dataclass(frozen=True, slots=True)
class ScoreSums:
    """Sums over examples; for a causal LM of each example's mean over its targets."""

    loss: float
    correct: float
    exact: float
    """examples of which every target is the largest logit's"""


def forward(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits, B x V of a classifier or B x T x V of a causal LM, in float32."""
    logits: Tensor = model(**inputs).logits
    return logits.float()


def class_counts(targets: Sequence[int], *, num_labels: int) -> tuple[int, ...]:
    """How many examples have each of `num_labels` labels; `targets` are theirs, one each."""
    return tuple(
        torch.bincount(torch.tensor(targets, dtype=torch.long), minlength=num_labels).tolist()
    )


def label_offsets(class_counts: Sequence[int], *, strength: float) -> Tensor | None:
    """What is added to the logits while training on labels that are not evenly spread.

    A worker whose labels are skewed learns first of all how frequent they are *there*, and the
    mean of such heads knows nothing anywhere. With `strength * log(share of label)` added to the
    logits in training only, the frequencies need not be learnt, and labels that the worker does
    not have take no part (Menon et al. 2021, "Long-tail learning via logit adjustment",
    arXiv:2007.07314, Eq. 10; for skewed federated clients: Zhang et al. 2022, arXiv:2209.00189).

    Args:
        class_counts: how many of the worker's examples have each label, V of them.
        strength: 1 is the balanced softmax.

    Returns:
        V numbers, or None where strength is 0.
    """
    if strength == 0:
        return None
    counts_V = torch.tensor(class_counts, dtype=torch.float64)
    offsets_V = strength * (counts_V / counts_V.sum()).log()
    return torch.where(counts_V > 0, offsets_V, ABSENT).float()


def loss_sum(logits: Tensor, targets: Tensor, offsets_V: Tensor | None = None) -> Tensor:
    """Cross-entropy summed over all targets that are not IGNORED."""
    if offsets_V is not None:
        logits = logits + offsets_V.to(logits.device)
    return cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum"
    )


def criterion_sum(
    criterion: Callable[[Tensor, Tensor], Tensor],
    logits: Tensor,
    targets: Tensor,
    offsets_V: Tensor | None = None,
) -> Tensor:
    """The same by a plug-in's criterion, which sees no target that is IGNORED."""
    if offsets_V is not None:
        logits = logits + offsets_V.to(logits.device)
    targets_N = targets.flatten()
    counts_N = targets_N != IGNORED
    return criterion(logits.flatten(0, -2)[counts_N], targets_N[counts_N])


def example_losses(logits: Tensor, batch: Batch) -> Tensor:
    """The loss of each example of a padded batch, one a row: the mean over its own targets."""
    targets_BT = batch.targets.view(batch.num_examples, -1)
    losses_BT = cross_entropy(
        logits.flatten(0, -2), targets_BT.flatten(), ignore_index=IGNORED, reduction="none"
    ).view_as(targets_BT)
    counts_B = (targets_BT != IGNORED).sum(1).clamp(min=1)
    return (losses_BT.sum(1) / counts_B).double()


def score_sums(logits: Tensor, batch: Batch) -> ScoreSums:
    """Loss and accuracy of a padded batch, one example a row."""
    targets_BT = batch.targets.view(batch.num_examples, -1)
    counts_B = (targets_BT != IGNORED).sum(1).clamp(min=1)
    correct_BT = (logits.argmax(-1).view_as(targets_BT) == targets_BT) & (targets_BT != IGNORED)
    correct_B = correct_BT.sum(1)
    return ScoreSums(
        loss=float(example_losses(logits, batch).sum()),
        correct=float((correct_B / counts_B).double().sum()),
        exact=float((correct_B == counts_B).sum()),
    )


def label_counts(logits_BV: Tensor, targets_B: Tensor) -> Tensor:
    """A classifier's hits and misses in a batch.

    Returns:
        3 x V whole numbers: of each label the examples predicted rightly, predicted to be of it,
        and that are of it.
    """
    predicted_B, width = logits_BV.argmax(-1), logits_BV.shape[-1]
    chosen = (targets_B[predicted_B == targets_B], predicted_B, targets_B)
    return torch.stack([torch.bincount(labels_N, minlength=width) for labels_N in chosen])
