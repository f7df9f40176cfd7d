"""The page of a study: a table for each choice of what is varied, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fedlora_cli.study.cells import Cell
from fedlora_cli.study.design import Condition, Study
from fedlora_cli.study.plots import Line, Panel, draw
from fedlora_cli.study.results import CellResult, Results
from fedlora_cli.study.statistics import Difference, compare, deviation, holm

__all__ = ["write_page"]

_SHARES = ("accuracy", "f1", "match", "gap", "error", "bound", "worst")
"""in the name of a metric: it is shown in percent"""

_MB = 1e6

_UNTESTED = "–: every seed differs by the same amount; without a spread there is no test."


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of one condition."""

    condition: Condition
    by_seed: Mapping[int, CellResult]

    def values(self, metric: str) -> dict[int, float]:
        last = {seed: result.value(metric) for seed, result in self.by_seed.items()}
        return {seed: value for seed, value in last.items() if value is not None}


def write_page(
    study: Study, cells: Sequence[Cell], results: Results, folder: Path, *, command: str
) -> Path:
    """Writes README.md and its pictures into a folder.

    Args:
        study: what was asked.
        cells: all of its cells, run or not.
        results: of those that were.
        folder: it is there.
        command: that makes the page again.

    Returns:
        The page.
    """
    groups = _groups(cells, results)
    known = [r for found in groups.values() for f in found for r in f.by_seed.values()]
    text = [f"# {study.title}", ""]
    text += [study.question, ""] if study.question else []
    text += [f"`{command}` runs what is missing and writes this page. {_made(cells, known)}", ""]
    text += [_legend(study), ""]
    for varied, found in groups.items():
        text += [f"## {varied or 'All variants'}", "", *_table(study, found), ""]
    panels = {varied or "round": _curves(study, found) for varied, found in groups.items()}
    drawn = {name: panel for name, panel in panels.items() if panel.lines}
    if drawn:
        (folder / "rounds.svg").write_text(draw(list(drawn.values())), encoding="utf-8")
        text += [
            "## Over the rounds",
            "",
            f"Mean over seeds of {_words(study.metrics[0])}; bars: one standard deviation.",
            "Where only the last round is scored on the whole test set, it is in the table alone.",
            "",
            "![Curves over the rounds](rounds.svg)",
            "",
        ]
    page = folder / "README.md"
    page.write_text("\n".join(text), encoding="utf-8")
    return page


def _groups(cells: Sequence[Cell], results: Results) -> dict[str, list[_Found]]:
    """Conditions with results, by what is varied, in the study's order."""
    by_condition: dict[tuple[str, str], dict[int, CellResult]] = {}
    conditions = {}
    for cell in cells:
        varied = ", ".join(f"{k} = {v}" for k, v in cell.condition.varied.items())
        conditions[varied, cell.condition.variant] = cell.condition
        if (result := results.find(cell)) is not None:
            by_condition.setdefault((varied, cell.condition.variant), {})[cell.seed] = result
    groups: dict[str, list[_Found]] = {}
    for (varied, variant), condition in conditions.items():
        if by_seed := by_condition.get((varied, variant)):
            groups.setdefault(varied, []).append(_Found(condition, by_seed))
    return groups


def _made(cells: Sequence[Cell], known: Sequence[CellResult]) -> str:
    if not known:
        return f"None of the {len(cells)} cells has been run."
    share = sum(r.train_seconds for r in known) / sum(r.seconds for r in known)
    return (
        f"{len(known)} of {len(cells)} cells, {fmean(r.seconds for r in known):.0f} s each on "
        f"average, {share:.0%} of them in the workers' optimiser steps; "
        f"{'; '.join(sorted({r.made_with for r in known}))}."
    )


def _legend(study: Study) -> str:
    return (
        "Each figure is that of the last round, or where its name begins with mean of all: mean ± "
        "standard deviation over seeds. Variants "
        f"are compared with `{study.baseline}` on {_words(study.metrics[0])} within each seed: "
        "mean difference [95 % confidence interval], and the two-sided p value of Student's "
        "paired t test, adjusted for the number of variants in the table (Holm). MB: what one "
        "round moves, all workers together."
        + (
            f" MB to a level: until {_words(study.reach_metric)} is first that high, on what is "
            "scored after each round."
            if study.reach_levels
            else ""
        )
    )


def _table(study: Study, found: Sequence[_Found]) -> list[str]:
    first = study.metrics[0]
    baseline = next((f for f in found if f.condition.variant == study.baseline), None)
    differences = {
        f.condition.variant: difference
        for f in found
        if baseline is not None
        and f is not baseline
        and (difference := compare(f.values(first), baseline.values(first))) is not None
    }
    tested = {name: d.p for name, d in differences.items() if not math.isnan(d.p)}
    adjusted = holm(tested)
    heads = ["variant", "seeds", _words(first), f"minus {study.baseline}", "p"]
    heads += [_words(metric) for metric in study.metrics[1:]]
    heads += ["MB up", "MB down"]
    heads += [f"MB to {_shown(study.reach_metric, level)}" for level in study.reach_levels]
    rows = []
    for f in found:
        name = f.condition.variant
        row = [f"`{name}`", str(len(f.by_seed)), _mean(first, f.values(first))]
        row += _difference(first, differences.get(name), adjusted.get(name))
        row += [_mean(metric, f.values(metric)) for metric in study.metrics[1:]]
        row += [f"{fmean(f.values(m).values()) / _MB:.2f}" for m in ("bytes_up", "bytes_down")]
        row += [_reached(study.reach_metric, level, f) for level in study.reach_levels]
        rows.append(row)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return lines if len(tested) == len(differences) else [*lines, "", _UNTESTED]


def _difference(metric: str, found: Difference | None, p: float | None) -> list[str]:
    if found is None:
        return ["", ""]
    if p is None:
        return [_signed(metric, found.mean), "–"]
    shown = [_signed(metric, v) for v in (found.mean, found.low, found.high)]
    return [f"{shown[0]} [{shown[1]}, {shown[2]}]", f"{p:.3f}" if p >= 0.001 else "< 0.001"]


def _reached(metric: str, level: float, found: _Found) -> str:
    needed = [r.bytes_to(metric, level) for r in found.by_seed.values()]
    reached = [n for n in needed if n is not None]
    if not reached:
        return "not reached"
    text = f"{fmean(reached) / _MB:.1f}"
    return text if len(reached) == len(needed) else f"{text} ({len(reached)}/{len(needed)} seeds)"


def _mean(metric: str, values: Mapping[int, float]) -> str:
    if not values:
        return ""
    mean = _shown(metric, fmean(values.values()))
    if len(values) == 1:
        # One seed has no spread to tell of.
        return mean
    return f"{mean} ± {_shown(metric, deviation([*values.values()])).rstrip(' %')}"


def _shown(metric: str, value: float) -> str:
    if any(word in metric for word in _SHARES):
        return f"{100 * value:.1f} %"
    return f"{value:.4g}"


def _signed(metric: str, value: float) -> str:
    text = _shown(metric, value).removesuffix(" %")
    return text if value < 0 else f"+{text}"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _curves(study: Study, found: Sequence[_Found]) -> Panel:
    """The first metric over the rounds in which every seed has it, on the same test examples."""
    metric = study.metrics[0]
    size = "test_num_examples" if metric.startswith("test_") else ""
    lines = []
    for f in found:
        runs = [result.rounds for result in f.by_seed.values()]
        points = [
            (number + 1.0, [run[number][metric] for run in runs])
            for number in range(min(map(len, runs)))
            if all(
                metric in run[number] and run[number].get(size) == run[0].get(size) for run in runs
            )
        ]
        if points:
            lines.append(
                Line(
                    name=f.condition.variant,
                    x=[x for x, _ in points],
                    y=[fmean(values) for _, values in points],
                    spread=[deviation(values) for _, values in points],
                )
            )
    varied = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in found[0].condition.varied.items())
    return Panel(title="round", unit=f"{_words(metric)} {varied}".strip(), lines=lines, zero=False)
