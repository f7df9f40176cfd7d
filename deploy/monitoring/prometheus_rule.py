"""Prints alerts.yml as the Prometheus Operator takes it, for deploy/kubernetes/components/alerts.

Kustomize can neither read a file outside of its folder nor put one below a key, so what it applies
is a copy. A test holds it equal to what this prints.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

__all__ = ["prometheus_rule"]

_HEAD = """\
# Written by deploy/monitoring/prometheus_rule.py (`make docs`) from alerts.yml.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fedlora
  labels: {app.kubernetes.io/name: fedlora}
spec:
"""


def prometheus_rule() -> str:
    """The alerts, as YAML of one object."""
    alerts = Path(__file__).with_name("alerts.yml").read_text(encoding="utf-8")
    return _HEAD + textwrap.indent(alerts, "  ")


if __name__ == "__main__":
    sys.stdout.write(prometheus_rule())
