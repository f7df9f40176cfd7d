"""One number per score, pooled over workers: means over examples, and what their counts give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from aggregator_service.rounds.fairness import fairness
from fedlora.runs.label_counts import LabelCounts
from fedlora.runs.pooling import pooled_metric
from fedlora.runs.tasks import Evaluation, EvaluationScope, EvaluationSplit

__all__ = ["pool_scores"]

_GROUPS = {
    (EvaluationScope.GLOBAL, EvaluationSplit.TEST): "test",
    (EvaluationScope.GLOBAL, EvaluationSplit.HELD_OUT): "held_out",
    (EvaluationScope.LOCAL, EvaluationSplit.HELD_OUT): "local",
    (EvaluationScope.PERSONAL, EvaluationSplit.HELD_OUT): "personal",
}

# Metrics of which higher is better, in the order in which the gap is taken on them.
_GAP_METRICS = ("accuracy", "token_accuracy")


def pool_scores(
    local: Mapping[str, Iterable[Evaluation]], published: Mapping[str, Iterable[Evaluation]]
) -> dict[str, float]:
    """Pools the scores of a round.

    Args:
        local: each worker's scores of its own adapter, before aggregation.
        published: each worker's scores of the published adapter, as it is and made personal.

    Returns:
        ``test_<metric>`` (shared test set), ``held_out_<metric>`` (workers' own data, published
        adapter), ``local_<metric>`` (own data, own adapter), ``personal_<metric>`` (own data,
        published adapter with own magnitudes), each weighted by examples, with
        ``<group>_num_examples``; of a continual run, whose workers score each experience for
        itself, also ``<group>_experience_<number>_<metric>``; of classifiers
        ``<group>_macro_f1`` and ``<group>_balanced_accuracy``, of the sums of the workers' counts;
        and ``local_global_gap``, how much better the workers' own adapters do on their own data,
        over the workers that reported both. Beside them what `fairness` says.
    """
    pooled: dict[str, float] = {}
    everything = [e for es in (*local.values(), *published.values()) for e in es]
    for (scope, split), group in _GROUPS.items():
        members = [e for e in everything if e.scope is scope and e.split is split]
        pooled |= _weighted_means(group, members)
        for number in sorted({e.experience for e in members if e.experience is not None}):
            joined = [e for e in members if e.experience == number]
            pooled |= _weighted_means(f"{group}_experience_{number}", joined)
    gap = _gap(local, published)
    if gap is not None:
        pooled["local_global_gap"] = gap
    return pooled | fairness(published)


def _weighted_means(group: str, members: list[Evaluation]) -> dict[str, float]:
    total = sum(e.num_examples for e in members)
    if not total:
        return {}
    means: dict[str, float] = {f"{group}_num_examples": float(total)}
    # What a worker calls so is not its number of examples.
    names = sorted(set[str]().union(*(e.metrics for e in members)) - {"num_examples"})
    for name in names:
        mean = pooled_metric(members, name)
        if mean is not None:
            means[f"{group}_{name}"] = mean
    counted = [e.label_counts for e in members if e.label_counts is not None and e.num_examples]
    if counted:
        counts = LabelCounts.total(counted)
        means[f"{group}_macro_f1"] = counts.macro_f1
        means[f"{group}_balanced_accuracy"] = counts.balanced_accuracy
    # A mean of perplexities is no perplexity.
    if f"{group}_perplexity" in means and f"{group}_loss" in means:
        means[f"{group}_perplexity"] = math.exp(min(means[f"{group}_loss"], 700.0))
    return means


def _gap(
    local: Mapping[str, Iterable[Evaluation]], published: Mapping[str, Iterable[Evaluation]]
) -> float | None:
    both = sorted(set(local) & set(published))
    for metric in _GAP_METRICS:
        pairs = [
            (a, b)
            for name in both
            for a in local[name]
            for b in published[name]
            if a.split is b.split is EvaluationSplit.HELD_OUT
            and a.experience == b.experience
            and a.scope is EvaluationScope.LOCAL
            and b.scope is EvaluationScope.GLOBAL
            and metric in a.metrics
            and metric in b.metrics
            and a.num_examples
        ]
        total = sum(a.num_examples for a, _ in pairs)
        if total:
            gap = math.fsum(
                (a.metrics[metric] - b.metrics[metric]) * a.num_examples for a, b in pairs
            )
            # Shares of a few hundred examples: what lies below 1e-12 is rounding, not a gap.
            return round(gap / total, 12) + 0.0
    return None
