"""The learning rate over the rounds of a run and over the steps of a round."""

from __future__ import annotations

import math

from fedlora.runs.training import LearningRateSchedule

__all__ = ["FINAL_SHARE", "round_factor", "step_factor"]

FINAL_SHARE = 0.1
"""share of the peak rate in the last round"""


def round_factor(schedule: LearningRateSchedule, *, round: int, num_rounds: int) -> float:
    """Share of the peak rate in a round: 1 in round 1, FINAL_SHARE in the last.

    Rounds outside the run (a round that is trained beyond its end) get the nearest one's share.
    """
    if schedule is LearningRateSchedule.CONSTANT or num_rounds == 1:
        return 1.0
    done = min(max((round - 1) / (num_rounds - 1), 0.0), 1.0)
    if schedule is LearningRateSchedule.LINEAR:
        return 1 - (1 - FINAL_SHARE) * done
    return FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * done)) / 2


def step_factor(step: int, *, num_steps: int, warmup_fraction: float) -> float:
    """Share of the round's rate in a step, counted from 0: rises over the warm-up, then 1."""
    warmup = math.ceil(warmup_fraction * num_steps)
    return min(1.0, (step + 1) / (warmup + 1))
