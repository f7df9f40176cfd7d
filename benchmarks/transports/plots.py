"""Panels of lines on straight axes that begin at 0, as one SVG that stands alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from aggregator_service.reporting.scale import Axis, format_number

__all__ = ["Line", "Panel", "draw"]

_WIDTH, _HEIGHT = 340, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 34, 44
_TEXT = 'font-family="sans-serif" font-size="12"'
_COLOURS = ("#1f6fb2", "#c2571a", "#3b8a4d")


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    marks: bool = True
    """whether the points themselves are drawn; a line without them is dashed"""


@dataclass(frozen=True, slots=True)
class Panel:
    """A square of the plot."""

    title: str
    """what runs along the lower edge"""
    unit: str
    """what runs up"""
    lines: Sequence[Line]


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side."""
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_HEIGHT}" {_TEXT}>',
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>',
    ]
    for i, panel in enumerate(panels):
        parts += [f'<g transform="translate({i * _WIDTH} 0)">', *_panel(panel), "</g>"]
    return "".join([*parts, "</svg>\n"])


def _panel(panel: Panel) -> list[str]:
    right, floor = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    x = Axis.over([v for line in panel.lines for v in line.x], _LEFT, right, zero=True)
    y = Axis.over([v for line in panel.lines for v in line.y], floor, _TOP, zero=True)
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
    for i, line in enumerate(panel.lines):
        colour = _COLOURS[i]
        places = [(x(px), y(py)) for px, py in zip(line.x, line.y, strict=True)]
        dash = "none" if line.marks else "5 4"
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-dasharray="{dash}"/>'
        )
        if line.marks:
            parts += [
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{colour}"/>' for px, py in places
            ]
        parts.append(
            f'<text x="{_LEFT + 12}" y="{_TOP + 14 + 16 * i}" fill="{colour}">'
            f"{escape(line.name)}</text>"
        )
    return parts
