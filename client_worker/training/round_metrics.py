"""The figures that an update is weighed by, measured on the worker's own training data.

    loss_at_start    mean loss of the adapter that the round began from, private parts included
    loss_reduction   that, less the mean loss after training
    score_mean       mean of min(loss^2, score_bound) over the examples, after training
    score_variance   and their variance

Only a round whose plan names them measures them: each of the two moments takes a pass over the
data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedlora.runs.plan import RoundPlan

__all__ = ["RoundMetrics"]

_AT_START = frozenset({"loss_at_start", "loss_reduction"})
_AT_END = frozenset({"loss_reduction", "score_mean", "score_variance"})

_SCORE_BOUND = 1.0
"""where a plan names none: what the server's rule assumes by itself"""


class RoundMetrics:
    """One round's figures.

    Args:
        plan: says which are wanted.
        losses: the loss of each training example with the adapter that is in the model.
    """

    def __init__(self, plan: RoundPlan, losses: Callable[[], Tensor]) -> None:
        self._wanted = frozenset(plan.required_metrics)
        self._bound = plan.settings.get("score_bound", _SCORE_BOUND)
        self._losses = losses
        self._start_N = losses() if self._wanted & _AT_START else torch.zeros(1)

    def at_end(self) -> Mapping[str, float]:
        """What the plan asked for, of the adapter as it is now trained."""
        end_N = self._losses() if self._wanted & _AT_END else torch.zeros(1)
        scores_N = end_N.square().clamp(max=self._bound)
        known = {
            "loss_at_start": self._start_N.mean(),
            "loss_reduction": self._start_N.mean() - end_N.mean(),
            "score_mean": scores_N.mean(),
            "score_variance": scores_N.var(correction=0),
        }
        return {name: float(known[name]) for name in sorted(self._wanted & known.keys())}
