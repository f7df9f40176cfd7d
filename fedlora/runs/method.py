"""The aggregation method, and the rules around it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = [
    "Gauge",
    "MethodSpec",
    "OptionValue",
    "RuleSpec",
]


OptionValue = float | int | bool | str
"""what an option of a method or rule may be, in a file or on the wire"""


class Gauge(enum.StrEnum):
    """In which factors a product is published: (B M^-1, M A) is one model for every M."""

    OWN = "own"
    """as the method and its compression leave them"""
    BALANCED = "balanced"
    ORTHONORMAL_A = "orthonormal_a"
    ORTHONORMAL_B = "orthonormal_b"
    CLOSEST_A = "closest_a"
    PROCRUSTES = "procrustes"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """A rule or plug-in that goes with the method, and its options."""

    name: str
    """name of the rule; `fedlora methods` lists them"""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """the rule's own options; defaults where left out"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """The aggregation method with its options, and the rules around it (docs/algorithms.md)."""

    name: str = "flora_na"
    """name of the method; `fedlora methods` lists them"""
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    """the method's own options; defaults where left out"""
    gauge: Gauge = Gauge.OWN
    """factors in which the product is published. own: the method's; balanced: equally large;
    orthonormal_a, orthonormal_b: orthonormal rows in A, columns in B; closest_a, procrustes: near
    those of the version before, the second by a rotation alone"""
    weighting: RuleSpec | None = None
    """how much each update counts; absent: the method's own, or the number of examples"""
    compression: RuleSpec | None = None
    """how a combination becomes an adapter of the run's rank; absent: the method's own"""
    server_optimizer: RuleSpec | None = None
    """how far the global adapter follows a round's result; absent: all the way"""
