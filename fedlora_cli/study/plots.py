"""Panels of lines on straight axes, as one SVG that stands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Line", "Panel", "draw"]

_WIDTH, _HEIGHT = 340, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 34, 44
_TEXT = 'font-family="sans-serif" font-size="12"'
_ROW = 16
"""height of a line of the legend"""

_COLOURS = (
    "#1f6fb2", "#c2571a", "#3b8a4d", "#8a4fd0", "#b8860b", "#c0307a", "#3aa6a6", "#666666",
    "#7a3b1f", "#5b6fd6",
)  # fmt: skip
"""told apart by people who see few colours; taken again with dashes where there are more lines"""


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = True
    """whether the points themselves are drawn; a line without them is dashed"""
    spread: Sequence[float] = ()
    """drawn above and below each point"""


@dataclass(frozen=True, slots=True)
class Panel:
    """A square of the plot."""

    title: str
    """what runs along the lower edge"""
    unit: str
    """what runs up"""
    lines: Sequence[Line]
    zero: bool = True
    """whether the axes begin at 0"""


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side, the names of their lines below them."""
    width = _WIDTH * len(panels)
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    columns = max(1, width // 220)
    height = _HEIGHT + _ROW * math.ceil(len(names) / columns) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {_TEXT}>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate({i * _WIDTH} 0)">', *_panel(panel, names), "</g>"]
    for i, name in enumerate(names):
        x, y = 12 + 220 * (i % columns), _HEIGHT + 8 + _ROW * (i // columns)
        colour = _COLOURS[i % len(_COLOURS)]
        parts.append(
            f'<path d="M{x} {y}h18" stroke="{colour}" stroke-width="3" '
            f'stroke-dasharray="{_dash(i)}"/>'
            f'<text x="{x + 24}" y="{y + 4}" fill="#222">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def _dash(number: int) -> str:
    return "none" if number < len(_COLOURS) else "6 3"


def _panel(panel: Panel, names: Sequence[str]) -> list[str]:
    from aggregator_service.reporting.scale import Axis, format_number

    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x = Axis.over([v for line in panel.lines for v in line.x], _LEFT, right, zero=panel.zero)
    edges = [
        v + sign * s
        for line in panel.lines
        for v, s in zip(line.y, line.spread or [0.0] * len(line.y), strict=True)
        for sign in (-1, 1)
    ]
    y = Axis.over(edges, floor, _TOP, zero=panel.zero)
    parts = [
        f'<path d="M{_LEFT} {y(tick):.1f}H{right}" stroke="#ddd"/>'
        f'<text x="{_LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">'
        f"{format_number(tick)}</text>"
        for tick in y.ticks()
    ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{floor + 17}" text-anchor="middle">'
        f"{format_number(tick)}</text>"
        for tick in x.ticks()
    ]
    parts.append(f'<text x="{_LEFT}" y="16" fill="#555">{escape(panel.unit)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(panel.title)}</text>'
    )
    for line in panel.lines:
        number = names.index(line.name)
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(x(px), y(py)) for px, py in zip(line.x, line.y, strict=True)]
        dash = _dash(number) if line.marks else "5 4"
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6" '
            f'stroke-dasharray="{dash}"/>'
        )
        parts += [
            f'<path d="M{x(px):.1f} {y(py - s):.1f}V{y(py + s):.1f}" stroke="{colour}" '
            'stroke-opacity="0.45"/>'
            for px, py, s in zip(line.x, line.y, line.spread, strict=False)
            if s
        ]
        if line.marks:
            parts += [
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.6" fill="{colour}"/>'
                for px, py in places
            ]
    return parts
