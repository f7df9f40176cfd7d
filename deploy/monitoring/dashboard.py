"""Prints Grafana's dashboard: `python dashboard.py > grafana/dashboards/fedlora.json`.

JSON of a dashboard is long and says everything many times. What is shown stands in panels.py, a few
lines a panel; how panels look is said here, once. A test holds the file equal to what this prints.
"""

from __future__ import annotations

import itertools
import json
import sys
from typing import Any

from panels import ROWS, RUN, Panel

__all__ = ["dashboard"]

_SOURCE = {"type": "prometheus", "uid": "${source}"}
"""as chosen above the dashboard, so that it is shown by any Grafana that has a Prometheus"""

_WIDTH = 24
"""columns of Grafana's grid"""


def dashboard() -> dict[str, Any]:
    """The dashboard, as Grafana's JSON."""
    return {
        "uid": "fedlora",
        "title": "fedlora",
        "description": "A federation of LoRA workers: rounds, certificates, traffic, devices.",
        "tags": ["fedlora"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                _sources(),
                _variable("run", "Run", "label_values(fedlora_run_phase, run)"),
                _variable("worker", "Worker", "label_values(fedlora_worker_state, instance)"),
            ]
        },
        "annotations": {"list": [_round_marks()]},
        "panels": _placed(),
    }


def _placed() -> list[dict[str, Any]]:
    """All panels, from left to right and from top to bottom."""
    numbers, placed, y = itertools.count(1), list[dict[str, Any]](), 0
    for title, panels in ROWS.items():
        place = {"x": 0, "y": y, "w": _WIDTH, "h": 1}
        placed.append({"id": next(numbers), "type": "row", "title": title, "gridPos": place})
        x, y, height = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > _WIDTH:
                x, y, height = 0, y + height, 0
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            placed.append({"id": next(numbers), "gridPos": place, **_json(panel)})
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return placed


def _json(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": _SOURCE,
            "expr": query,
            "legendFormat": legend,
        }
        for i, (legend, query) in enumerate(panel.queries.items())
    ]
    mapped = {value: {"text": text, "index": 0} for value, text in panel.names.items()}
    defaults = {
        "unit": panel.unit,
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": color} for value, color in panel.steps],
        },
        "mappings": [{"type": "value", "options": mapped}] if mapped else [],
        **({"min": 0, "max": 1} if panel.share else {}),
        **({"custom": _curve(panel)} if panel.kind == "timeseries" else {}),
    }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": _SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "timeseries":
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "calcs": ["lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    if panel.kind == "state-timeline":
        return {"showValue": "never", "legend": {"showLegend": False}}
    several = len(panel.queries) > 1 or panel.names
    return {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "colorMode": "value",
        "graphMode": "none" if several else "area",
        "textMode": "value_and_name",
    }


def _curve(panel: Panel) -> dict[str, Any]:
    return {
        "drawStyle": "line",
        "lineWidth": 2,
        "fillOpacity": 25 if panel.stacked else 8,
        "showPoints": "never",
        "spanNulls": True,
        "stacking": {"mode": "normal" if panel.stacked else "none"},
        "scaleDistribution": {"type": "log", "log": 10}
        if panel.logarithmic
        else {"type": "linear"},
    }


def _sources() -> dict[str, Any]:
    """The variable of which Prometheus is asked: Grafana's default one at first."""
    return {
        "name": "source",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "current": {"text": "default", "value": "default"},
    }


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
        "sort": 1,
    }


def _round_marks() -> dict[str, Any]:
    return {
        "name": "Rounds",
        "datasource": _SOURCE,
        "enable": True,
        "iconColor": "rgba(120, 120, 160, 0.4)",
        "expr": f"changes(fedlora_run_round{RUN}[10s]) > 0",
        "titleFormat": "{{run}}: a round begins",
        "step": "10s",
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dashboard(), indent=1) + "\n")
