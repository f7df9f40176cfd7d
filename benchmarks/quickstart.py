"""The quickstart's table and the README's picture of its certificate, from a run directory.

    make run
    python benchmarks/quickstart.py runs/quickstart

Writes benchmarks/quickstart.md and docs/images/certificate.svg.
"""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path

import psutil
import torch

from aggregator_service.reporting.figures import certificate_chart
from aggregator_service.reporting.run_directory import read_events, read_rounds, read_run
from fedlora.runs.report import RoundReport

ROOT = Path(__file__).resolve().parents[1]

# The report's colours, for a picture that stands alone on a light or a dark page.
STYLE = """
svg{background:#fff;--c1:#2459d6;--c4:#cf6a12;--c5:#6b7480;--ink:#3c4650;--line:#e3e5e8}
@media (prefers-color-scheme:dark){svg{background:#0f141f;--c1:#7ba2ff;--c4:#f2a04f;--c5:#98a2ad;
--ink:#c9d2db;--line:#2d343c}}
text{font:11px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}
.grid{stroke:var(--line)}.zero{stroke:var(--ink)}.line{fill:none;stroke-width:2.2}
.c1{--c:var(--c1)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}.line{stroke:var(--c)}.dot{fill:var(--c)}
"""

LEGEND = (("c4", "averaging A and B"), ("c1", "published"), ("c5", "least possible"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path, help="directory of a completed run")
    root = parser.parse_args().run_dir
    rounds = read_rounds(root)
    (ROOT / "docs" / "images" / "certificate.svg").write_text(_picture(rounds))
    (ROOT / "benchmarks" / "quickstart.md").write_text(_table(root, rounds))


def _picture(rounds: tuple[RoundReport, ...]) -> str:
    chart = certificate_chart(rounds, vs_change=True)
    marks = re.sub(r"^<svg[^>]*>|</svg>.*$", "", chart, flags=re.DOTALL)
    legend = "".join(
        f'<line class="line {style}" x1="{60 + 130 * i}" x2="{78 + 130 * i}" y1="14" y2="14"/>'
        f'<text x="{83 + 130 * i}" y="18">{text}</text>'
        for i, (style, text) in enumerate(LEGEND)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 460 300" role="img" '
        'aria-label="Error of aggregation over what the round changed, by round">'
        f"<style>{STYLE}</style>{legend}"
        '<text x="60" y="38">error of the aggregation, over what the round changed</text>'
        f'<g transform="translate(0 44)">{marks}</g></svg>\n'
    )


def _table(root: Path, rounds: tuple[RoundReport, ...]) -> str:
    run, events = read_run(root), read_events(root)
    seconds = events[-1].time - events[0].time
    conditions = (
        f"`make run`, then `python benchmarks/quickstart.py runs/{run.spec.name}`: "
        f"{len(run.workers)} workers, method `{run.spec.method.name}`, seed {run.spec.seed}, "
        f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores ({platform.machine()}), "
        f"torch {torch.__version__.split('+')[0]} on the CPU. {seconds:.0f} s from the start of "
        "the aggregator to the last certificate."
    )
    legend = (
        "Test: accuracy on the shared test set. Held out: of the published adapter on the workers' "
        "own unseen data; local: of their own adapters there, before aggregation. Errors are over "
        "what the round changed."
    )
    lines = [
        "# The quickstart, measured",
        "",
        conditions,
        "",
        legend,
        "",
        "| round | test | held out | local | gap | published | mean of A, B | least | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in rounds:
        m, c = report.metrics, report.certificate
        if c is None:
            raise SystemExit(f"round {report.round} has no certificate yet")
        o = c.overall
        shown = [
            *(m["test_accuracy"], m["held_out_accuracy"], m["local_accuracy"]),
            m["local_global_gap"],
            *(o.relative_error_vs_change, o.factor_mean_error_vs_change, o.lower_bound_vs_change),
        ]
        cells = " | ".join(f"{100 * x:.1f} %" for x in shown)
        lines.append(f"| {report.round} | {cells} | {sum(report.phase_seconds.values()):.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
