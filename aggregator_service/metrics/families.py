"""Metrics from rows of label values, as the collectors make them at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)

from aggregator_service.metrics.rounds import Sum

__all__ = ["counter", "gauge", "summary"]

_Row = tuple[Sequence[str], float]


def gauge(name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    """A gauge; none of its series if there are no rows."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def counter(name: str, text: str, labels: Sequence[str], rows: Iterable[_Row]) -> Metric:
    """A counter, whose samples end in _total."""
    family = CounterMetricFamily(name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def summary(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], Sum]]
) -> Metric:
    """A summary: how often, and the seconds in all."""
    family = SummaryMetricFamily(name, text, labels=labels)
    for values, spent in rows:
        family.add_metric(values, spent.count, spent.seconds)
    return family
