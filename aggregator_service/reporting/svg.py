"""Charts as inline SVG: lines, stacked bars, ranges, a heat map. No script, no outside resource.

Colours come from the page's style sheet by class (`c1`, `c2`, ...), so that charts follow its light
and dark dress; every mark carries a <title>, which a browser shows under the pointer. Charts are
drawn about as wide as a phone and scaled up from there, so that their text stays readable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from aggregator_service.reporting.scale import Axis, finite, format_number

__all__ = ["Format", "RangeRow", "Series", "heat_map", "line_chart", "range_chart", "stacked_bars"]

_WIDTH = 440
_HEIGHT = 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 40

Format = Callable[[float | None], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line or one layer of bars; `values` run beside the chart's labels, None where unknown."""

    name: str
    style: str
    """class of its colour"""
    values: Sequence[float | None]
    band: Sequence[tuple[float, float] | None] = ()
    """lowest and highest around each value"""
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeRow:
    """A row of marks on one axis, joined by a line from the first to the last."""

    label: str
    marks: Sequence[tuple[str, str, float]]
    """name, class, value"""


def line_chart(
    series: Sequence[Series],
    labels: Sequence[str],
    *,
    title: str,
    x_title: str,
    number: Format = format_number,
    log: bool = False,
    zero: bool = False,
) -> str:
    """Lines over rounds.

    Args:
        series: what to draw; one without any value is left out.
        labels: one per value.
        title: what the chart shows, for those who do not see it.
        x_title: what the labels count.
        number: how values are written.
        log: logarithmic value axis.
        zero: value axis from 0.
    """
    series = [s for s in series if finite(s.values)]
    if not series:
        return _empty(title)
    values = [v for s in series for v in s.values]
    values += [edge for s in series for span in s.band if span for edge in span]
    y = Axis.over(values, _HEIGHT - _BOTTOM, _TOP, log=log, zero=zero)
    x = _positions(len(labels))
    parts = [_grid(y, number), _x_labels(labels, x, x_title)]
    parts += [_band(s, x, y) for s in series if s.band]
    for s in series:
        points = [
            (px, y(v), v, label)
            for px, v, label in zip(x, s.values, labels, strict=True)
            if v is not None and math.isfinite(v)
        ]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        parts.append(f'<polyline class="line {s.style}"{dash} points="{path}"/>')
        parts += [
            f'<circle class="dot {s.style}" cx="{px:.1f}" cy="{py:.1f}" r="3.2">'
            f"<title>{escape(s.name)}, {escape(x_title)} {escape(label)}: "
            f"{escape(number(v))}</title></circle>"
            for px, py, v, label in points
        ]
    return _svg(title, _HEIGHT, parts) + _legend(series)


def stacked_bars(
    series: Sequence[Series],
    labels: Sequence[str],
    *,
    title: str,
    x_title: str,
    number: Format = format_number,
) -> str:
    """Bars per round, one layer per series; values below 0 hang down (one series only)."""
    series = [s for s in series if finite(s.values)]
    if not series:
        return _empty(title)
    totals = [sum(finite([s.values[i] for s in series])) for i in range(len(labels))]
    y = Axis.over(totals, _HEIGHT - _BOTTOM, _TOP, zero=True)
    x = _positions(len(labels), inset=True)
    width = min(34.0, 0.7 * (_WIDTH - _LEFT - _RIGHT) / len(labels))
    parts = [_grid(y, number), _x_labels(labels, x, x_title)]
    for i, label in enumerate(labels):
        base = 0.0
        for s in series:
            value = s.values[i]
            if value is None or not math.isfinite(value):
                continue
            top, bottom = sorted((y(base), y(base + value)))
            parts.append(
                f'<rect class="bar {s.style}" x="{x[i] - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{max(0.5, bottom - top):.1f}" rx="1.5">'
                f"<title>{escape(s.name)}, {escape(x_title)} {escape(label)}: "
                f"{escape(number(value))}</title></rect>"
            )
            base += value
    if y.low < 0:
        parts.append(f'<line class="zero" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {_at(y(0.0))}/>')
    return _svg(title, _HEIGHT, parts) + _legend(series)


def range_chart(rows: Sequence[RangeRow], *, title: str, number: Format = format_number) -> str:
    """One row per module with its marks on a common axis."""
    if not rows:
        return _empty(title)
    left, row_height, width = 190, 17, 720
    height = _TOP + row_height * len(rows) + 26
    values = [v for row in rows for _, _, v in row.marks]
    x = Axis.over(values, left, width - 26, zero=True)
    parts = [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" '
        f'y2="{height - 22}"/><text class="tick" x="{x(tick):.1f}" y="{height - 7}" '
        f'text-anchor="middle">{escape(_tick(number(tick)))}</text>'
        for tick in x.ticks()
    ]
    for i, row in enumerate(rows):
        py = _TOP + row_height * (i + 0.5)
        places = [x(v) for _, _, v in row.marks]
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{py + 3.5:.1f}" text-anchor="end">'
            f"{escape(_shortened(row.label))}<title>{escape(row.label)}</title></text>"
            f'<line class="range" x1="{min(places):.1f}" x2="{max(places):.1f}" {_at(py)}/>'
        )
        for (name, style, value), px in zip(row.marks, places, strict=True):
            parts.append(
                f'<circle class="dot {style}" cx="{px:.1f}" cy="{py:.1f}" r="4">'
                f"<title>{escape(row.label)}, {escape(name)}: {escape(number(value))}</title>"
                "</circle>"
            )
    legend = [Series(name=n, style=s, values=()) for n, s, _ in rows[0].marks]
    return f'<div class="wide">{_svg(title, height, parts, width)}</div>{_legend(legend)}'


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    x_title: str,
    number: Format = format_number,
) -> str:
    """A coloured cell per row and column; the colour deepens with the value's share of the top."""
    known = finite(v for line in values for v in line)
    if not known:
        return _empty(title)
    top = max(known) or 1.0
    left, width = 190, 720
    row_height = 15 if len(rows) <= 60 else max(4.0, 900 / len(rows))
    cell = min(60.0, (width - left - 10) / len(columns))
    height = _TOP + row_height * len(rows) + 40
    parts = []
    for i, (label, line) in enumerate(zip(rows, values, strict=True)):
        py = _TOP + i * row_height
        if row_height >= 11:
            parts.append(
                f'<text class="tick" x="{left - 10}" y="{py + row_height / 2 + 3.5:.1f}" '
                f'text-anchor="end">{escape(_shortened(label))}'
                f"<title>{escape(label)}</title></text>"
            )
        for j, value in enumerate(line):
            if value is None or not math.isfinite(value):
                continue
            depth = 0.06 + 0.94 * max(0.0, value) / top
            parts.append(
                f'<rect class="cell" x="{left + j * cell:.1f}" y="{py:.1f}" '
                f'width="{cell - 1:.1f}" height="{max(1.0, row_height - 1):.1f}" '
                f'fill-opacity="{depth:.3f}"><title>{escape(label)}, {escape(x_title)} '
                f"{escape(columns[j])}: {escape(number(value))}</title></rect>"
            )
    base = _TOP + row_height * len(rows) + 14
    stride = max(1, math.ceil(len(columns) / 20))
    parts += [
        f'<text class="tick" x="{left + (j + 0.5) * cell:.1f}" y="{base:.1f}" '
        f'text-anchor="middle">{escape(columns[j])}</text>'
        for j in range(0, len(columns), stride)
    ]
    parts.append(
        f'<text class="tick" x="{left + len(columns) * cell / 2:.1f}" y="{base + 17:.1f}" '
        f'text-anchor="middle">{escape(x_title)}; darkest cell {escape(number(top))}</text>'
    )
    return f'<div class="wide">{_svg(title, height, parts, width)}</div>'


# --- parts -------------------------------------------------------------------------------


def _positions(count: int, *, inset: bool = False) -> list[float]:
    start, end = _LEFT, _WIDTH - _RIGHT
    if count == 1 or inset:
        step = (end - start) / count
        return [start + (i + 0.5) * step for i in range(count)]
    return [start + 8 + i * (end - start - 16) / (count - 1) for i in range(count)]


def _grid(y: Axis, number: Format) -> str:
    return "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" {_at(y(tick))}/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{y(tick) + 3.8:.1f}" text-anchor="end">'
        f"{escape(_tick(number(tick)))}</text>"
        for tick in y.ticks()
    )


def _tick(text: str) -> str:
    """A round value without the zeros that say nothing: "20 %" for "20.0 %"."""
    return re.sub(r"\.0+(?=\D|$)", "", text)


def _at(pixel: float) -> str:
    return f'y1="{pixel:.1f}" y2="{pixel:.1f}"'


def _x_labels(labels: Sequence[str], x: Sequence[float], title: str) -> str:
    stride = max(1, math.ceil(len(labels) / 12))
    marks = "".join(
        f'<text class="tick" x="{x[i]:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
        f"{escape(labels[i])}</text>"
        for i in range(0, len(labels), stride)
    )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return marks + (
        f'<text class="tick" x="{middle:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{escape(title)}</text>"
    )


def _band(series: Series, x: Sequence[float], y: Axis) -> str:
    spans = [(px, span) for px, span in zip(x, series.band, strict=True) if span]
    if len(spans) == 1:
        px, (low, high) = spans[0]
        spans = [(px - 3, (low, high)), (px + 3, (low, high))]
    there = " ".join(f"{px:.1f},{y(high):.1f}" for px, (_, high) in spans)
    back = " ".join(f"{px:.1f},{y(low):.1f}" for px, (low, _) in reversed(spans))
    return f'<polygon class="band {series.style}" points="{there} {back}"/>'


def _legend(series: Sequence[Series]) -> str:
    items = "".join(
        f'<span><i class="key {s.style}{" dashed" if s.dashed else ""}"></i>{escape(s.name)}</span>'
        for s in series
    )
    return f'<p class="legend">{items}</p>'


def _svg(title: str, height: float, parts: Sequence[str], width: float = _WIDTH) -> str:
    return (
        f'<svg role="img" viewBox="0 0 {width} {height:.0f}" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )


def _empty(title: str) -> str:
    return f'<p class="empty">{escape(title)}: nothing measured yet.</p>'


def _shortened(text: str) -> str:
    return text if len(text) <= 30 else "…" + text[-29:]
