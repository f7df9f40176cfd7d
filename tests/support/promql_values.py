"""PromQL on samples of a test: what `support.promql` has read, evaluated at a moment.

`rate` and `increase` take the samples that are in the range and do not extrapolate to its ends, as
Prometheus does: by a test's round numbers they differ by one scrape at most.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from support.promql import Node

__all__ = ["Timeline", "evaluate"]

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
Value = float | Vector

_ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul}
_COMPARISONS = {
    "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt,
    ">=": operator.ge, "<=": operator.le,
}  # fmt: skip
_AGGREGATIONS: Mapping[str, Callable[[list[float]], float]] = {
    "sum": sum, "max": max, "min": min, "avg": lambda v: sum(v) / len(v), "count": len,
}  # fmt: skip
_STALE_SECONDS = 300.0


@dataclass
class Timeline:
    """Samples by series, in the order of time."""

    samples: dict[tuple[str, Labels], list[tuple[float, float]]] = field(default_factory=dict)

    def add(self, at: float, name: str, value: float, **labels: str) -> None:
        self.samples.setdefault((name, frozenset(labels.items())), []).append((at, value))

    def select(
        self, node: Node, since: float, until: float
    ) -> Iterator[tuple[Labels, list[tuple[float, float]]]]:
        for (name, labels), samples in self.samples.items():
            if name == node.name and all(_fits(dict(labels), m) for m in node.matchers):
                found = [(t, v) for t, v in samples if since < t <= until]
                if found:
                    yield labels, found


def evaluate(node: Node, timeline: Timeline, at: float) -> Value:
    """What an expression comes to at a moment."""
    if node.kind == "number":
        return node.number
    if node.kind == "select":
        found = timeline.select(node, at - _STALE_SECONDS, at)
        return {labels: samples[-1][1] for labels, samples in found}
    if node.kind == "call":
        return _FUNCTIONS[node.name](node, timeline, at)
    if node.kind == "aggregate":
        return _aggregated(node, evaluate(node.inner[0], timeline, at))
    left, right = (evaluate(inner, timeline, at) for inner in node.inner)
    return _joined(node, left, right)


def _fits(labels: Mapping[str, str], matcher: tuple[str, str, str]) -> bool:
    label, sign, wanted = matcher
    value = labels.get(label, "")
    if "~" in sign:
        return bool(re.fullmatch(wanted, value)) is (sign == "=~")
    return (value == wanted) is (sign == "=")


def _aggregated(node: Node, value: Value) -> Vector:
    assert isinstance(value, dict)
    groups: dict[Labels, list[float]] = {}
    for labels, number in value.items():
        groups.setdefault(_kept(labels, node.by or ()), []).append(number)
    return {labels: _AGGREGATIONS[node.name](numbers) for labels, numbers in groups.items()}


def _joined(node: Node, left: Value, right: Value) -> Value:
    if not isinstance(left, dict) and not isinstance(right, dict):
        if node.name in _COMPARISONS:
            raise ValueError("a comparison of two numbers needs bool")
        return _computed(node.name, left, right)
    if not isinstance(right, dict):
        pairs = {labels: (value, right) for labels, value in _vector(left).items()}
    elif not isinstance(left, dict):
        pairs = {labels: (left, value) for labels, value in right.items()}
    else:
        return _matched(node, left, right)
    return _applied(node.name, pairs, keep_left=isinstance(left, dict))


def _matched(node: Node, left: Vector, right: Vector) -> Vector:
    def key(labels: Labels) -> Labels:
        return labels if node.by is None else _kept(labels, node.by)

    if node.name == "or":
        known = {key(labels) for labels in left}
        return left | {x: v for x, v in right.items() if key(x) not in known}
    ones = {key(labels): (labels, value) for labels, value in right.items()}
    if len(ones) < len(right):
        raise ValueError("many-to-many matching: several on the right have the same labels")
    if node.name in ("and", "unless"):
        return {x: v for x, v in left.items() if (key(x) in ones) is (node.name == "and")}
    if not node.many_to_one and len({key(labels) for labels in left}) < len(left):
        raise ValueError("several on the left have the same labels: group_left is missing")
    pairs = {}
    for labels, value in left.items():
        if key(labels) in ones:
            others, other = ones[key(labels)]
            pairs[labels | _kept(others, node.taken_over)] = (value, other)
    return _applied(node.name, pairs, keep_left=True)


def _applied(name: str, pairs: Mapping[Labels, tuple[float, float]], *, keep_left: bool) -> Vector:
    if name in _COMPARISONS:
        return {
            labels: left if keep_left else right
            for labels, (left, right) in pairs.items()
            if _COMPARISONS[name](left, right)
        }
    return {labels: _computed(name, *pair) for labels, pair in pairs.items()}


def _computed(name: str, left: float, right: float) -> float:
    if name == "/":
        return left / right if right else math.nan
    return _ARITHMETIC[name](left, right)


def _vector(value: Value) -> Vector:
    assert isinstance(value, dict)
    return value


def _kept(labels: Labels, names: Sequence[str]) -> Labels:
    return frozenset((name, value) for name, value in labels if name in names)


def _over_range(
    compute: Callable[[Sequence[float], float], float],
) -> Callable[[Node, Timeline, float], Vector]:
    def function(node: Node, timeline: Timeline, at: float) -> Vector:
        (inner,) = node.inner
        if inner.kind != "select" or inner.seconds is None:
            raise ValueError(f"{node.name}() needs a range such as [5m]")
        found = timeline.select(inner, at - inner.seconds, at)
        return {
            labels: compute([value for _, value in samples], inner.seconds)
            for labels, samples in found
        }

    return function


def _absent(node: Node, timeline: Timeline, at: float) -> Vector:
    # 1, with the labels that were asked for by name, where there is nothing.
    (asked,) = node.inner
    if evaluate(asked, timeline, at):
        return {}
    return {frozenset((label, value) for label, sign, value in asked.matchers if sign == "="): 1.0}


def _increase(values: Sequence[float], _: float) -> float:
    # A counter that falls has begun anew, with its process.
    steps = itertools.pairwise(values)
    return sum(after - before if after >= before else after for before, after in steps)


def _quantile(node: Node, timeline: Timeline, at: float) -> Vector:
    share, buckets = (evaluate(inner, timeline, at) for inner in node.inner)
    groups: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in _vector(buckets).items():
        edge = float(dict(labels)["le"])
        rest = frozenset(pair for pair in labels if pair[0] != "le")
        groups.setdefault(rest, []).append((edge, count))
    assert isinstance(share, float)
    return {labels: _edge(share, sorted(found)) for labels, found in groups.items()}


def _edge(share: float, buckets: Sequence[tuple[float, float]]) -> float:
    """The upper edge of the bucket in which the quantile lies; Prometheus interpolates in it."""
    total = buckets[-1][1]
    if not total:
        return math.nan
    return next(edge for edge, count in buckets if count >= share * total)


_FUNCTIONS: Mapping[str, Callable[[Node, Timeline, float], Value]] = {
    "absent": _absent,
    "time": lambda _node, _timeline, at: at,
    "increase": _over_range(_increase),
    "rate": _over_range(lambda values, seconds: _increase(values, seconds) / seconds),
    "avg_over_time": _over_range(lambda values, _: sum(values) / len(values)),
    "changes": _over_range(lambda values, _: sum(a != b for a, b in itertools.pairwise(values))),
    "histogram_quantile": _quantile,
}
