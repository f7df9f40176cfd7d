"""Which round is the best one so far, and whether it is worth going on.

Two rounds are remembered. The best one has the best score there was; of equal ones it is the
earliest. The last gain is the last round whose score was better than that of the gain before it by
more than `early_stopping_min_change`: small steps add up to a gain, and noise below that change is
none (as in Prechelt 1998, "Early Stopping - But When?", patience is counted in rounds from there).

A round without the score, because it was not evaluated or nobody could, changes nothing and ends
nothing; its place in the count of rounds stays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from aggregator_service.rounds.state import RunState
from fedlora.runs.report import BestRound
from fedlora.runs.score_names import is_cost

__all__ = ["judged", "out_of_patience"]


def judged(state: RunState, metrics: Mapping[str, float]) -> RunState:
    """The state once its round has been compared with those before it.

    Args:
        state: its newest version is what the round came to.
        metrics: the round's pooled scores.
    """
    rules = state.spec.rounds
    if rules.best_by not in metrics or state.version is None:
        return state
    this = BestRound(
        round=state.round,
        adapter_version=state.version,
        metric=rules.best_by,
        value=metrics[rules.best_by],
    )
    if _gain(this, state.best) > 0:
        state = replace(state, best=this)
    if _gain(this, state.last_gain) > rules.early_stopping_min_change:
        state = replace(state, last_gain=this)
    return state


def out_of_patience(state: RunState, metrics: Mapping[str, float]) -> str:
    """Why a run is complete with the round that was just judged; empty where it goes on."""
    rules, gain = state.spec.rounds, state.last_gain
    if not rules.early_stopping_rounds or rules.best_by not in metrics or gain is None:
        return ""
    since = state.round - gain.round
    if since < rules.early_stopping_rounds:
        return ""
    least = rules.early_stopping_min_change
    by = f" by more than {least:g}" if least else ""
    rounds = "1 round" if since == 1 else f"{since} rounds"
    return (
        f"{gain.metric} has not become better{by} in {rounds}, since round {gain.round} with "
        f"{gain.value:.4g}"
    )


def _gain(this: BestRound, before: BestRound | None) -> float:
    """How much better a round is than one before it."""
    if before is None:
        return math.inf
    return before.value - this.value if is_cost(this.metric) else this.value - before.value
