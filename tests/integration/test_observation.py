"""What two services show of themselves while they work, and what they never show."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support.observed_crew import CANARY_TEXT, CANARY_VALUE, NUM_ROUNDS
from support.observed_federation import Observed, observe
from support.promql import names_in, parse
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from aggregator_service.reporting.run_directory import read_rounds

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Observed:
    with pytest.MonkeyPatch.context() as patch:
        # Workers of this process choose the CPU for all of it.
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return observe(tmp_path_factory.mktemp("observed"), bert)


def value(page: str, name: str, **labels: str) -> float:
    """The one sample of that name with these labels."""
    found = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, labels, found)
    return found[0]


def names(page: str) -> set[str]:
    return {family.name for family in text_string_to_metric_families(page)}


# --- the server ----------------------------------------------------------------------------


def test_the_server_shows_where_its_run_stands(seen: Observed):
    assert value(seen.server, "fedlora_run_phase", run="test", phase="training") == 1
    assert value(seen.server, "fedlora_run_phase", run="test", phase="completed") == 0
    assert value(seen.server, "fedlora_run_round", run="test") == NUM_ROUNDS
    assert value(seen.server, "fedlora_run_workers", run="test", state="ready") == 2
    assert value(seen.server, "fedlora_run_workers", run="test", state="lost") == 0
    assert value(seen.server, "fedlora_run_worker_connected", run="test", worker="w-1") == 1
    assert 0 <= value(seen.server, "fedlora_run_phase_age_seconds", phase="training") < 150


def test_the_server_shows_what_its_rounds_came_to(seen: Observed):
    first = read_rounds(seen.folder)[0]
    assert first.certificate is not None
    overall = first.certificate.overall
    page = seen.server
    assert value(page, "fedlora_score", score="test_accuracy") == first.metrics["test_accuracy"]
    assert value(page, "fedlora_certificate_relative_error_ratio") == overall.relative_error
    assert value(page, "fedlora_certificate_lower_bound_ratio") == overall.lower_bound
    assert value(page, "fedlora_certificate_round") == 1
    assert value(page, "fedlora_round_duration_seconds_count") == 1
    seconds = value(page, "fedlora_phase_duration_seconds_sum", phase="aggregating")
    assert seconds == pytest.approx(first.phase_seconds["aggregating"])
    assert value(page, "fedlora_run_events_total", type="update_committed") == 3


def test_the_server_counts_calls_uploads_and_bytes(seen: Observed):
    first = read_rounds(seen.folder)[0]
    page = seen.server
    assert value(page, "fedlora_rpcs_total", method="Register", code="OK") == 2
    assert value(page, "fedlora_rpcs_total", method="PullAdapter", code="NOT_FOUND") == 1
    assert value(page, "fedlora_rpc_duration_seconds_count", method="PushUpdate") == 3
    assert value(page, "fedlora_uploads_total", result="committed") == 3
    assert value(page, "fedlora_uploads_total", result="refused") == 0
    assert value(page, "fedlora_uploads_active") == 0
    initial = value(page, "fedlora_payload_bytes_total", direction="in") - first.bytes_up
    assert 0 < initial <= first.bytes_up
    assert value(page, "fedlora_payload_bytes_total", direction="out") >= first.bytes_down
    assert value(page, "fedlora_commit_duration_seconds_count") > 10
    assert value(page, "fedlora_disk_takes_writes") == 1


def test_the_server_shows_when_its_certificate_ends(seen: Observed):
    assert value(seen.server, "fedlora_identity_expires_timestamp_seconds") == seen.expires


def test_the_series_of_workers_end_with_the_run(seen: Observed):
    assert 'worker="w-0"' in seen.server
    assert 'worker="w-0"' not in seen.ended
    assert value(seen.ended, "fedlora_run_phase", run="test", phase="completed") == 1
    assert value(seen.ended, "fedlora_certificate_round") == NUM_ROUNDS


# --- the worker ----------------------------------------------------------------------------


def test_a_worker_shows_what_it_does(seen: Observed):
    page = seen.workers["w-0"]
    assert value(page, "fedlora_worker_info", worker="w-0", device="cpu") == 1
    assert value(page, "fedlora_worker_state", state="training") == 1
    assert value(page, "fedlora_worker_state", state="ready") == 0
    assert value(page, "fedlora_worker_round") == NUM_ROUNDS
    steps = value(page, "fedlora_worker_planned_steps")
    assert value(page, "fedlora_worker_round_steps") == steps > 0
    assert value(page, "fedlora_worker_steps_total") == NUM_ROUNDS * steps
    assert value(page, "fedlora_worker_train_loss") > 0
    assert value(page, "fedlora_worker_examples_per_second") > 0


def test_what_workers_send_is_what_the_server_receives(seen: Observed):
    sent = sum(
        value(page, "fedlora_worker_payload_bytes_total", direction="out")
        for page in seen.workers.values()
    )
    received = sum(
        value(page, "fedlora_worker_payload_bytes_total", direction="in")
        for page in seen.workers.values()
    )
    assert value(seen.server, "fedlora_payload_bytes_total", direction="in") == sent
    assert value(seen.server, "fedlora_payload_bytes_total", direction="out") == received


# --- what is asked of them, and what is said of them -------------------------------------


def exported(seen: Observed) -> set[str]:
    """Names of all series of both services, those without a sample among them."""
    ends = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
    found = re.findall(r"^# TYPE (\S+) (\S+)$", seen.server + seen.workers["w-0"], re.MULTILINE)
    return {name + end for name, kind in found for end in ends.get(kind, ("",))}


def asked() -> dict[str, str]:
    """Expressions of the dashboard and of the alerts, by where they stand."""
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    board = json.loads((MONITORING / "grafana" / "dashboards" / "fedlora.json").read_text())
    targets = [(p["title"], t) for p in board["panels"] for t in p.get("targets", ())]
    return {
        **{rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]},
        **{f"{title} {t['refId']}": re.sub(r"\$\w+", ".*", t["expr"]) for title, t in targets},
    }


def test_the_dashboard_and_the_alerts_ask_for_nothing_that_is_not_there(seen: Observed):
    # `up` is Prometheus' own.
    known = exported(seen) | {"up"}
    missing = {where: names_in(parse(query)) - known for where, query in asked().items()}
    assert len(missing) > 50
    assert {where: names for where, names in missing.items() if names} == {}


def test_every_metric_is_documented_and_every_documented_one_is_there(seen: Observed):
    page = (ROOT / "docs" / "metrics.md").read_text()
    documented = set(re.findall(r"^\| `(fedlora_\w+)` \|", page, re.MULTILINE))
    found = re.findall(r"^# TYPE (fedlora_\S+) ", seen.server + seen.workers["w-0"], re.MULTILINE)
    assert documented == set(found)


def test_no_label_stands_on_a_metric_without_being_documented(seen: Observed):
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(fedlora_\w+)` \| ([\w, ]*)\|", page, re.MULTILINE)
    documented = {name: set(filter(None, re.split(r",? ", labels))) for name, labels in rows}
    for line in (seen.server + seen.workers["w-0"]).splitlines():
        match = re.match(r"(fedlora_\w+?)(?:_bucket|_count|_sum)?\{(.*)\} ", line)
        if match and match[1] in documented:
            labels = set(re.findall(r"(\w+)=\"", match[2])) - {"le"}
            assert labels == documented[match[1]], line


# --- what is never shown -------------------------------------------------------------------


@pytest.mark.parametrize("where", ["server", "ended", "workers", "log", "events"])
def test_neither_texts_nor_tensors_nor_tokens_are_shown(seen: Observed, where: str):
    shown = getattr(seen, where)
    text = "".join(shown.values()) if isinstance(shown, dict) else shown
    assert len(text) > 1000
    assert CANARY_TEXT not in text.lower()
    assert str(CANARY_VALUE)[:7] not in text
    assert "tensor(" not in text
    assert len(seen.tokens) == 5
    for token in seen.tokens:
        secret = max(re.split(r"[^A-Za-z0-9_-]", token), key=len)
        assert len(secret) > 20
        assert secret not in text


def test_the_marks_would_be_found(seen: Observed):
    # The canaries were in what went through the federation: their absence says something.
    rounds = sorted((seen.folder / "rounds").iterdir())
    from safetensors.torch import load_file

    adapter = load_file(rounds[0] / "adapter_model.safetensors")
    assert any((t - CANARY_VALUE).abs().min() < 1e-8 for t in adapter.values())


# --- logs ----------------------------------------------------------------------------------

_OF_THE_PROCESS = {
    "starting",
    "metrics_served",
    "metrics_in_plain_http",
    "serving",
    "stopped",
    "registered",
    "swept",
}
"""lines of before and after there is a run, and of all runs together"""


def test_every_line_of_a_worker_names_it_and_its_run(seen: Observed):
    lines = [x for x in seen.lines if x["logger"].startswith("client_worker")]
    assert len(lines) > 20
    assert {x["worker"] for x in lines} == {"w-0", "w-1"}
    assert [x for x in lines if "run" not in x and x["event"] not in _OF_THE_PROCESS] == []
    trained = [x for x in lines if x["event"] in ("trained", "update_committed")]
    assert {x["round"] for x in trained} == {0, *range(1, NUM_ROUNDS + 1)}
    assert all("task" in x for x in trained)


def test_every_line_of_the_server_names_run_and_round(seen: Observed):
    lines = [x for x in seen.lines if x["logger"].startswith("aggregator_service")]
    assert len(lines) > 20
    about_runs = [x for x in lines if x["event"] not in _OF_THE_PROCESS]
    assert [x for x in about_runs if "run" not in x or "round" not in x] == []


def test_a_refusal_names_the_worker_that_was_refused(seen: Observed):
    (line,) = [x for x in seen.lines if x["event"] == "refused"]
    assert (line["run"], line["round"], line["method"]) == ("test", NUM_ROUNDS, "PullAdapter")
    assert line["worker"] == "w-0"
    assert line["reason"] == "NOT_FOUND"


def test_what_a_run_does_is_not_put_down_to_the_worker_that_set_it_off(seen: Observed):
    closed = [x for x in seen.lines if x["event"] in ("round_closed", "adapter_published")]
    assert len(closed) >= NUM_ROUNDS
    assert all("worker" not in x for x in closed)


# --- TensorBoard ---------------------------------------------------------------------------


def test_tensorboard_reads_the_numbers_of_the_rounds(seen: Observed):
    board = EventAccumulator(str(seen.folder / "tensorboard")).Reload()
    rounds = read_rounds(seen.folder)

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(s.step, s.value) for s in board.Scalars(tag)]

    accuracy = [(r.round, pytest.approx(r.metrics["test_accuracy"], rel=1e-6)) for r in rounds]
    assert scalars("scores/test_accuracy") == accuracy
    errors = [
        (r.round, pytest.approx(r.certificate.overall.relative_error, rel=1e-6))
        for r in rounds
        if r.certificate is not None
    ]
    assert len(errors) == NUM_ROUNDS
    assert scalars("certificate/relative_error") == errors
    assert scalars("bytes/up") == [(r.round, float(r.bytes_up)) for r in rounds]
    times = [s.wall_time for s in board.Scalars("bytes/up")]
    assert 1.6e9 < times[0] < times[1]
