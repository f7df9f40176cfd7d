"""What the dashboard shows: its rows, their panels, and what each asks Prometheus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["ROWS", "RUN", "Panel"]

RUN = '{run=~"$run"}'
"""the runs that are chosen above the dashboard"""

_WORKER = '{instance=~"$worker"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel: what it asks, and in which unit it answers."""

    title: str
    queries: Mapping[str, str]
    """by legend, in which {{label}} is that label's value"""
    unit: str = "short"
    text: str = ""
    """shown beside the title"""
    kind: str = "timeseries"
    """Grafana's name of the panel's type"""
    width: int = 8
    height: int = 8
    steps: Sequence[tuple[float | None, str]] = ((None, "text"),)
    """from which value on which colour"""
    names: Mapping[str, str] = field(default_factory=dict)
    """what is shown in the place of a value"""
    stacked: bool = False
    logarithmic: bool = False
    share: bool = False
    """from 0 to 1"""


_GOOD = ((None, "red"), (1.0, "green"))
_BAD = ((None, "green"), (1.0, "red"))

ROWS: Mapping[str, Sequence[Panel]] = {
    "Overview": (
        Panel(
            title="Phase",
            kind="stat",
            width=4,
            height=4,
            queries={"{{run}}: {{phase}}": f"fedlora_run_phase{RUN} == 1"},
            steps=((None, "blue"),),
            text="What each run does now.",
            names={"1": " "},
        ),
        Panel(
            title="Rounds",
            kind="gauge",
            width=4,
            height=4,
            unit="percentunit",
            share=True,
            queries={"{{run}}": f"fedlora_run_round{RUN} / fedlora_run_planned_rounds{RUN}"},
            steps=((None, "blue"),),
        ),
        Panel(
            title="Test accuracy",
            kind="stat",
            width=4,
            height=4,
            unit="percentunit",
            queries={"{{run}}": 'fedlora_score{run=~"$run", score="test_accuracy"}'},
            steps=((None, "green"),),
        ),
        Panel(
            title="Aggregation lost",
            kind="stat",
            width=4,
            height=4,
            unit="percentunit",
            queries={"{{run}}": f"fedlora_certificate_relative_error_ratio{RUN}"},
            steps=((None, "green"), (0.05, "orange"), (0.2, "red")),
            text="Distance of what was published from the workers' ideal mean, over its norm.",
        ),
        Panel(
            title="Workers ready",
            kind="stat",
            width=4,
            height=4,
            queries={"{{run}}": 'fedlora_run_workers{run=~"$run", state="ready"}'},
            steps=_GOOD,
        ),
        Panel(
            title="Workers lost",
            kind="stat",
            width=2,
            height=4,
            queries={"{{run}}": 'fedlora_run_workers{run=~"$run", state="lost"}'},
            steps=_BAD,
        ),
        Panel(
            title="Disk",
            kind="stat",
            width=2,
            height=4,
            queries={"{{instance}}": "fedlora_disk_takes_writes"},
            steps=_GOOD,
            names={"0": "refuses", "1": "ok"},
            text="Whether the server's state directory takes writes.",
        ),
    ),
    "Rounds": (
        Panel(
            title="Scores",
            unit="percentunit",
            queries={
                "{{run}} {{score}}": 'fedlora_score{run=~"$run", score!~".*(loss|perplexity|gap)"}'
            },
        ),
        Panel(
            title="Loss",
            queries={
                "{{run}} training": f"fedlora_train_loss{RUN}",
                "{{run}} {{score}}": 'fedlora_score{run=~"$run", score=~".*loss"}',
            },
            text="Mean training loss of the last round, and the published adapter's.",
        ),
        Panel(
            title="Updates of this round",
            queries={
                "{{run}} updates": f"fedlora_run_round_updates{RUN}",
                "{{run}} asked": f"fedlora_run_cohort_workers{RUN}",
            },
        ),
        Panel(
            title="Mean time of a phase",
            unit="s",
            stacked=True,
            queries={
                "{{run}} {{phase}}": f"increase(fedlora_phase_duration_seconds_sum{RUN}[10m])"
                f" / increase(fedlora_phase_duration_seconds_count{RUN}[10m])"
            },
            text="Over the rounds of ten minutes; aggregating is the aggregation.",
        ),
        Panel(
            title="Time in this phase",
            unit="s",
            queries={
                "{{run}} {{phase}}": f"fedlora_run_phase_age_seconds{RUN}",
                "{{run}} deadline": f"fedlora_run_deadline_seconds{RUN}",
            },
        ),
        Panel(
            title="Events in ten minutes",
            queries={
                "{{run}} {{type}}": 'increase(fedlora_run_events_total{run=~"$run", '
                'type=~"worker_lost|deadline_extended|task_reassigned|server_restarted|run_failed"}'
                "[10m])"
            },
            text="What should be rare.",
        ),
    ),
    "Certificate": (
        Panel(
            title="What aggregation lost",
            width=16,
            unit="percentunit",
            logarithmic=True,
            queries={
                "{{run}} published": f"fedlora_certificate_relative_error_ratio{RUN}",
                "{{run}} mean of the factors": f"fedlora_certificate_factor_mean_error_ratio{RUN}",
                "{{run}} least possible": f"fedlora_certificate_lower_bound_ratio{RUN}",
            },
            text="Published lies between the least error of that rank and the factor mean's.",
        ),
        Panel(
            title="Time of a certificate",
            unit="s",
            queries={
                "{{run}}": f"increase(fedlora_certificate_duration_seconds_sum{RUN}[10m])"
                f" / increase(fedlora_certificate_duration_seconds_count{RUN}[10m])"
            },
        ),
    ),
    "Traffic": (
        Panel(
            title="Payload",
            unit="Bps",
            queries={"{{direction}}": "sum by (direction) (rate(fedlora_payload_bytes_total[1m]))"},
            text="Updates in, adapters out.",
        ),
        Panel(
            title="Uploads",
            queries={
                "active": "fedlora_uploads_active",
                "waiting": "fedlora_uploads_waiting",
            },
        ),
        Panel(
            title="Ends of uploads in ten minutes",
            stacked=True,
            queries={"{{result}}": "sum by (result) (increase(fedlora_uploads_total[10m]))"},
        ),
        Panel(
            title="Rate of an upload",
            unit="Bps",
            queries={
                f"{share:.0%}": f"histogram_quantile({share}, "
                "sum by (le) (rate(fedlora_upload_rate_bytes_per_second_bucket[10m])))"
                for share in (0.1, 0.5, 0.9)
            },
            text="A tenth, half and nine tenths of them are slower.",
        ),
        Panel(
            title="Bytes of the last round",
            unit="bytes",
            queries={"{{run}} {{direction}}": f"fedlora_round_payload_bytes{RUN}"},
        ),
        Panel(
            title="Retries of workers",
            queries={
                "{{instance}} {{reason}}": f"increase(fedlora_worker_retries_total{_WORKER}[10m])"
            },
        ),
    ),
    "Workers": (
        Panel(
            title="Workers by state",
            stacked=True,
            queries={"{{run}} {{state}}": f"fedlora_run_workers{RUN}"},
        ),
        Panel(
            title="What each does",
            kind="state-timeline",
            width=16,
            queries={
                "{{worker}} {{state}}": f"fedlora_worker_state{_WORKER}"
                " * on (instance) group_left (worker) fedlora_worker_info == 1"
            },
            names={"1": " "},
            steps=((None, "blue"),),
        ),
        Panel(
            title="Updates that counted",
            queries={"{{worker}}": f"fedlora_run_worker_updates_total{RUN}"},
        ),
        Panel(
            title="Training loss",
            queries={
                "{{worker}}": f"fedlora_worker_train_loss{_WORKER}"
                " * on (instance) group_left (worker) fedlora_worker_info"
            },
        ),
        Panel(
            title="Steps a second",
            queries={
                "{{worker}}": f"rate(fedlora_worker_steps_total{_WORKER}[1m])"
                " * on (instance) group_left (worker) fedlora_worker_info"
            },
        ),
    ),
    "GPUs": (
        Panel(
            title="Memory",
            unit="bytes",
            queries={
                "{{instance}} {{device}}": "fedlora_device_memory_used_bytes",
                "{{instance}} {{device}} in all": "fedlora_device_memory_total_bytes",
            },
        ),
        Panel(
            title="Utilisation",
            unit="percentunit",
            share=True,
            queries={"{{instance}} {{device}}": "fedlora_device_utilization_ratio"},
        ),
        Panel(
            title="Temperature",
            unit="celsius",
            queries={"{{instance}} {{device}}": "fedlora_device_temperature_celsius"},
        ),
    ),
    "Server": (
        Panel(
            title="Calls a second",
            queries={"{{method}}": "sum by (method) (rate(fedlora_rpcs_total[1m]))"},
        ),
        Panel(
            title="Refused or failed calls a second",
            queries={
                "{{method}} {{code}}": "sum by (method, code) "
                '(rate(fedlora_rpcs_total{code!="OK"}[5m])) > 0'
            },
        ),
        Panel(
            title="Time of a call, 99th percentile",
            unit="s",
            logarithmic=True,
            queries={
                "{{method}}": "histogram_quantile(0.99, sum by (method, le) "
                '(rate(fedlora_rpc_duration_seconds_bucket{method!="AwaitTask"}[5m])))'
            },
        ),
        Panel(
            title="Time of a commit",
            unit="s",
            queries={
                f"{share:.0%}": f"histogram_quantile({share}, "
                "sum by (le) (rate(fedlora_commit_duration_seconds_bucket[5m])))"
                for share in (0.5, 0.99)
            },
        ),
        Panel(
            title="Memory of the processes",
            unit="bytes",
            queries={"{{job}} {{instance}}": 'process_resident_memory_bytes{job=~"fedlora-.*"}'},
        ),
        Panel(
            title="CPU of the processes",
            unit="percentunit",
            queries={
                "{{job}} {{instance}}": 'rate(process_cpu_seconds_total{job=~"fedlora-.*"}[1m])'
            },
        ),
        Panel(
            title="Identities end in",
            kind="stat",
            width=24,
            height=4,
            unit="s",
            queries={"{{job}} {{instance}}": "fedlora_identity_expires_timestamp_seconds - time()"},
            steps=((None, "red"), (3 * 86400.0, "orange"), (14 * 86400.0, "green")),
        ),
    ),
}
