"""Prometheus' relabelling as far as our files speak it; what is not understood is an error.

https://prometheus.io/docs/prometheus/latest/configuration/configuration/#relabel_config
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["pod_labels", "relabelled"]

_KEYS = {"source_labels", "regex", "target_label", "replacement"}


def pod_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """What Prometheus' discovery makes of a pod's labels."""
    return {
        f"__meta_kubernetes_pod_label_{re.sub('[^a-zA-Z0-9_]', '_', name)}": value
        for name, value in labels.items()
    }


def relabelled(labels: Mapping[str, str], rules: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """A target's labels after rules of the default action, `replace`.

    Args:
        labels: before them.
        rules: with Prometheus' keys or with the operator's, which are the same in camel case.
    """
    found = dict(labels)
    for rule in rules:
        given = {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): rule[key] for key in rule}
        if given.keys() != _KEYS:
            raise ValueError(f"a rule must have {sorted(_KEYS)}, has {sorted(given)}")
        source = ";".join(found.get(name, "") for name in given["source_labels"])
        match = re.fullmatch(given["regex"], source)
        if match:
            found[given["target_label"]] = match.expand(
                re.sub(r"\$(\d+)", r"\\g<\1>", given["replacement"])
            )
    return found
