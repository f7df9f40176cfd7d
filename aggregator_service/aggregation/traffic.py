"""What a method puts on the wire for one layer in one round, as its plans have it.

A formula is text for people, and for programs an expression: letters are sizes, a product has no
sign and ^ is a power. d and k are the layer's out_features and in_features, r the worker's rank, m
the number of components that it chose, U the size of the cohort, R the sum of its ranks and t the
round. Its numbers are those of an update, and of a download by a worker that holds the version
before. Not in it: modules trained in full, what plug-ins send, and DoRA's magnitudes, d each way.

test_method_federations.py holds every row of the registry to what crosses a wire.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from aggregator_service.aggregation.base import Method
from aggregator_service.aggregation.composition import compose
from fedlora.adapters.names import Part
from fedlora.runs.plan import RoundPlan, Selection

__all__ = ["Traffic", "traffic_of"]

_WIDTHS = {Part.B: "d", Part.A: "k", Part.CORE: "r"}
"""numbers per component"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Formulas for each round of a cycle."""

    up: tuple[str, ...]
    down: tuple[str, ...]
    refined: tuple[str, ...] = ()
    """more to fetch after a stage on the server's data; empty for nothing"""
    metrics: int = 0
    """numbers beside every update, whatever the number of layers"""

    @property
    def up_text(self) -> str:
        """What a worker sends, in a table's words."""
        more = f", {self.metrics} more per update" if self.metrics else ""
        return _in_turn(self.up) + more

    @property
    def down_text(self) -> str:
        """Likewise what it fetches."""
        more = f", {_in_turn(self.refined)} more after a server's stage" if self.refined else ""
        return _in_turn(self.down) + more


def traffic_of(method: Method) -> Traffic:
    """The formulas of a method with its own rules, for LoRA."""
    recipe = compose(method)
    plans = recipe.plans()
    stack = method.about.base_rank if recipe.properties.changes_base else ""
    refined = tuple(_refined(plan) for plan in plans)
    return Traffic(
        up=tuple(_up(plan) for plan in plans),
        down=tuple(_down(plan, stack) for plan in plans),
        refined=refined if any(refined) else (),
        metrics=max(len(plan.required_metrics) for plan in plans),
    )


def _up(plan: RoundPlan) -> str:
    if plan.selection is Selection.ALL:
        return _components("r", plan.trained)
    return _components("m", plan.trained) + " + r"


def _down(plan: RoundPlan, stack: str) -> str:
    """The parts that change; of the base model's changes always the whole stack."""
    adapter = _components("r", plan.published)
    return f"{adapter} + min({stack}, d, k)(d+k)" if stack else adapter


def _refined(plan: RoundPlan) -> str:
    """What the stage changes and the aggregation did not, or what is fetched twice."""
    apart = plan.personal_unrefined
    return _components("r", [p for p in plan.refined if apart or p not in plan.published])


def _components(count: str, parts: Collection[Part]) -> str:
    widths = [width for part, width in _WIDTHS.items() if part in parts]
    if len(widths) > 1:
        return f"{count}({'+'.join(widths)})"
    return "".join("r^2" if width == count else count + width for width in widths)


def _in_turn(formulas: Sequence[str]) -> str:
    return ", then ".join(formulas)
