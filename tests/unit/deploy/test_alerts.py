"""Each alert fires when it should and is silent when it should, on samples made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.promql import parse, seconds_of
from support.promql_values import Timeline, evaluate

ALERTS = Path(__file__).parents[3] / "deploy" / "monitoring" / "alerts.yml"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(ALERTS.read_text())["groups"]
    for rule in group["rules"]
}

STEP = 15.0
NOW = 8 * 3600.0

At = Callable[[float], float | None]
"""a value by seconds since the change of a story, negative before it; None where there is none"""


def story(minutes: float, *series: tuple[str, dict[str, str], At]) -> Timeline:
    """Samples of a server, whose change was so many minutes ago."""
    timeline, changed = Timeline(), NOW - 60 * minutes
    for i in range(int(NOW / STEP) + 1):
        at = i * STEP
        for name, labels, value in series:
            sample = value(at - changed)
            if sample is not None:
                timeline.add(at, name, sample, instance="server:9400", **labels)
    return timeline


def fires(alert: str, timeline: Timeline) -> bool:
    """Whether the alert's expression has held for as long as it has to."""
    rule = RULES[alert]
    expression, held = parse(rule["expr"]), seconds_of(rule.get("for", "0s"))
    moments = [NOW - i * STEP for i in range(int(held / STEP) + 1)]
    found = [evaluate(expression, timeline, at) for at in moments]
    assert all(isinstance(vector, dict) for vector in found)
    return bool(set.intersection(*(set(vector) for vector in found)))


def after(value: float, before: float = 0.0) -> At:
    return lambda seconds: value if seconds >= 0 else before


def growing(per_second: float, before_per_second: float = 0.0) -> At:
    """A counter's way."""
    return lambda s: 1e6 + s * (per_second if s >= 0 else before_per_second)


RUN = {"run": "r"}
DEADLINE = ("fedlora_run_deadline_seconds", RUN, after(600.0, 600.0))


def phase_age(phase: str, age: At) -> tuple[str, dict[str, str], At]:
    return ("fedlora_run_phase_age_seconds", {**RUN, "phase": phase}, age)


def uploads(**rates: float) -> list[tuple[str, dict[str, str], At]]:
    """So many of each result a second; but for the committed ones only since the change."""
    before = {"committed": rates["committed"]}
    return [
        ("fedlora_uploads_total", {"result": result}, growing(rate, before.get(result, 0.0)))
        for result, rate in rates.items()
    ]


def commits(*, slow: float) -> list[tuple[str, dict[str, str], At]]:
    """Ten commits a second, a share of which takes more than half a second."""
    edges = {"0.01": 1 - slow, "0.25": 1 - slow, "1.0": 1.0, "+Inf": 1.0}
    return [
        ("fedlora_commit_duration_seconds_bucket", {"le": le}, growing(10 * share, 10 * share))
        for le, share in edges.items()
    ]


STORIES = {
    "FedloraRoundStuck": (
        story(5, phase_age("training", after(1300.0)), DEADLINE),
        story(5, phase_age("training", after(1100.0)), DEADLINE),
    ),
    "FedloraRunWaits": (
        story(1, phase_age("waiting", after(1900.0))),
        story(1, phase_age("training", after(1900.0))),
    ),
    "FedloraRunFailed": (
        story(1, ("fedlora_run_phase", {**RUN, "phase": "failed"}, after(1.0))),
        story(1, ("fedlora_run_phase", {**RUN, "phase": "stopped"}, after(1.0))),
    ),
    "FedloraCertificateDrift": (
        story(10, ("fedlora_certificate_relative_error_ratio", RUN, after(0.3, 0.1))),
        story(10, ("fedlora_certificate_relative_error_ratio", RUN, after(0.15, 0.1))),
    ),
    "FedloraWorkerLost": (
        story(3, ("fedlora_run_workers", {**RUN, "state": "lost"}, after(1.0))),
        story(1, ("fedlora_run_workers", {**RUN, "state": "lost"}, after(1.0))),
    ),
    "FedloraDeviceHot": (
        story(6, ("fedlora_device_temperature_celsius", {"device": "GPU-1"}, after(95.0, 60.0))),
        story(6, ("fedlora_device_temperature_celsius", {"device": "GPU-1"}, after(85.0, 60.0))),
    ),
    "FedloraDeviceFull": (
        story(
            6,
            ("fedlora_device_memory_used_bytes", {"device": "GPU-1"}, after(79.0, 50.0)),
            ("fedlora_device_memory_total_bytes", {"device": "GPU-1"}, after(80.0, 80.0)),
        ),
        story(
            6,
            ("fedlora_device_memory_used_bytes", {"device": "GPU-1"}, after(70.0, 50.0)),
            ("fedlora_device_memory_total_bytes", {"device": "GPU-1"}, after(80.0, 80.0)),
        ),
    ),
    "FedloraUploadsRefused": (
        story(20, *uploads(committed=1.0, refused=0.3, disk=0.1)),
        story(20, *uploads(committed=1.0, refused=0.05, busy=5.0)),
    ),
    "FedloraUploadsCut": (
        story(25, *uploads(committed=1.0, cut=2.0)),
        story(25, *uploads(committed=1.0, cut=0.5)),
    ),
    "FedloraServerDown": (
        story(2, ("up", {"job": "fedlora-aggregator"}, after(0.0, 1.0))),
        story(
            2,
            ("up", {"job": "fedlora-worker"}, after(0.0, 1.0)),
            ("up", {"job": "fedlora-aggregator"}, after(1.0, 1.0)),
        ),
    ),
    "FedloraDiskRefusesWrites": (
        story(2, ("fedlora_disk_takes_writes", {}, after(0.0, 1.0))),
        story(0.5, ("fedlora_disk_takes_writes", {}, after(0.0, 1.0))),
    ),
    "FedloraSlowCommits": (story(30, *commits(slow=0.05)), story(30, *commits(slow=0.005))),
    "FedloraInternalErrors": (
        story(2, ("fedlora_rpcs_total", {"method": "Leave", "code": "INTERNAL"}, growing(0.1))),
        story(2, ("fedlora_rpcs_total", {"method": "Leave", "code": "NOT_FOUND"}, growing(0.1))),
    ),
    "FedloraIdentityExpires": (
        story(1, ("fedlora_identity_expires_timestamp_seconds", {}, lambda _: NOW + 86400.0)),
        story(1, ("fedlora_identity_expires_timestamp_seconds", {}, lambda _: NOW + 30 * 86400.0)),
    ),
}


def test_every_alert_has_its_story():
    assert set(STORIES) == set(RULES)


@pytest.mark.parametrize("alert", STORIES)
def test_the_alert_fires(alert: str):
    assert fires(alert, STORIES[alert][0])


@pytest.mark.parametrize("alert", STORIES)
def test_the_alert_is_silent_where_nothing_is_wrong(alert: str):
    assert not fires(alert, STORIES[alert][1])


def test_one_mistake_fires_where_its_counter_began_at_zero():
    labels = {"method": "Leave", "code": "INTERNAL"}
    assert fires("FedloraInternalErrors", story(2, ("fedlora_rpcs_total", labels, after(1.0))))
    appeared = story(2, ("fedlora_rpcs_total", labels, lambda s: 1.0 if s >= 0 else None))
    assert not fires("FedloraInternalErrors", appeared)


def test_a_server_that_left_no_series_is_down_and_a_workers_end_is_none():
    def ends_with_its_pod(seconds: float) -> float | None:
        return 1.0 if seconds < 0 else None

    # A series is seen for five minutes after its last sample.
    server = story(10, ("up", {"job": "fedlora-aggregator"}, ends_with_its_pod))
    worker = ("up", {"job": "fedlora-worker"}, ends_with_its_pod)
    there = story(10, ("up", {"job": "fedlora-aggregator"}, after(1.0, 1.0)), worker)
    assert fires("FedloraServerDown", server)
    assert not fires("FedloraServerDown", there)


@pytest.mark.parametrize("alert", sorted(RULES))
def test_the_alert_says_what_it_is_and_how_bad(alert: str):
    rule = RULES[alert]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}
