"""What every stage of a round is told: which round, from which seed, what to train, when to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedlora.runs.plan import RoundPlan

__all__ = ["OnProgress", "RoundWork"]

OnProgress = Callable[[int, int, Mapping[str, float]], None]
"""told steps done, steps in all, metrics"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundWork:
    """One round's work for a trainer."""

    round: int
    """counted from 1; decides the learning rate"""
    seed: int
    """of everything random in the round"""
    plan: RoundPlan = field(default_factory=RoundPlan)
    """which parts are trained, the others stay bit for bit; A and B if none is given"""
    on_progress: OnProgress = lambda *_: None
    """called after each step with steps done, steps in all, metrics"""
    should_abandon: Callable[[], bool] = lambda: False
    """asked before each step; what it ends is half trained"""
