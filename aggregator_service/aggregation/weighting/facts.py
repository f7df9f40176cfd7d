"""What came with the updates of a cohort, as vectors, and weights made of them.

Shape suffix: U clients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aggregator_service.aggregation.weighting.base import WeightingView, Weights, normalised
from aggregator_service.aggregation.weighting.examples import NumExamples
from fedlora.errors import FedLoraError, Reason

__all__ = ["metric", "reweighted"]


def metric(view: WeightingView, name: str, *, rule: str) -> Tensor:
    """One metric of every update.

    Args:
        view: the cohort.
        name: the metric's.
        rule: who asks for it, for the message.

    Raises:
        FedLoraError: INVALID_ARGUMENT for an update without it.
    """
    if missing := [update.worker for update in view.updates if name not in update.metrics]:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"{rule} needs the metric {name} with every update, and {', '.join(missing)} came "
            "without",
            hint="Choose num_examples, which needs no metric, or workers that send this one",
        )
    return torch.tensor([u.metrics[name] for u in view.updates], dtype=torch.float64)


def reweighted(view: WeightingView, values_U: Tensor) -> Weights:
    """Weights in proportion to n_u values_u; to n_u where those are all 0 or not all finite.

    Equal values of 1 give n_u / N bit for bit.

    Raises:
        FedLoraError: INVALID_ARGUMENT where no update has examples.
    """
    data_U = NumExamples().weigh(view).values_U
    counts_U = torch.tensor([u.num_examples for u in view.updates], dtype=torch.float64)
    weights_U = normalised(counts_U * values_U, counts_U)
    moved = float((weights_U - data_U).abs().sum()) / 2
    return Weights(values_U=weights_U, measurements={"moved_from_data_weights": moved})
