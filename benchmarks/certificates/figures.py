"""The two figures of certificate.md, as SVG that stands alone on a light or a dark page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aggregator_service.reporting.figures import short_module
from aggregator_service.reporting.scale import format_percent
from aggregator_service.reporting.svg import RangeRow, Series, line_chart, range_chart

__all__ = ["by_layer", "by_round"]

# The report's colours.
_STYLE = """
svg{background:#fff;--c1:#2459d6;--c2:#2a8f5b;--c4:#cf6a12;--c5:#6b7480;--ink:#3c4650;
--line:#e3e5e8}
@media (prefers-color-scheme:dark){svg{background:#0f141f;--c1:#7ba2ff;--c2:#6fd0a0;--c4:#f2a04f;
--c5:#98a2ad;--ink:#c9d2db;--line:#2d343c}}
text{font:11px system-ui,-apple-system,"Segoe UI",sans-serif;fill:var(--ink)}
.grid,.range{stroke:var(--line)}.line{fill:none;stroke-width:2.2}
.c1{--c:var(--c1)}.c2{--c:var(--c2)}.c4{--c:var(--c4)}.c5{--c:var(--c5)}
.line{stroke:var(--c)}.dot{fill:var(--c)}
"""
_COLOURS = ("c4", "c1", "c2", "c5")
_HEADER = 48


def by_round(errors: Mapping[str, Sequence[float]], labels: Sequence[str]) -> str:
    """One line a method; the last is the bound."""
    names = list(errors)
    chart = line_chart(
        [
            Series(name=n, style=c, values=errors[n], dashed=n == names[-1])
            for n, c in zip(names, _COLOURS, strict=True)
        ],
        labels,
        title="Error by round",
        x_title="round",
        number=format_percent,
        zero=True,
    )
    return _alone(chart, names, "error of the aggregation over the ideal mean, mean over layers")


def by_layer(errors: Mapping[str, Mapping[str, float]], *, title: str) -> str:
    """One row a layer, in the model's order, with a dot a method.

    Args:
        errors: by method and module.
        title: which round.
    """
    names = list(errors)
    rows = [
        RangeRow(
            label=short_module(module),
            marks=[(n, c, errors[n][module]) for n, c in zip(names, _COLOURS, strict=True)],
        )
        for module in errors[names[0]]
    ]
    chart = range_chart(rows, title=f"Error by layer, {title}", number=format_percent)
    return _alone(chart, names, f"error of the aggregation over the ideal mean, {title}")


def _alone(chart: str, names: Sequence[str], caption: str) -> str:
    """A chart of the report with its style, a legend and a caption of its own."""
    found = re.search(r'<svg[^>]*viewBox="0 0 (\d+) (\d+)"[^>]*>(.*?)</svg>', chart, re.DOTALL)
    if found is None:
        raise ValueError("the chart is empty")
    width, height = int(found[1]), int(found[2])
    step = (width - 60) // len(names)
    legend = "".join(
        f'<circle class="dot {colour}" cx="{62 + step * i}" cy="14" r="4"/>'
        f'<text x="{70 + step * i}" y="18">{name}</text>'
        for i, (name, colour) in enumerate(zip(names, _COLOURS, strict=True))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + _HEADER}" '
        f'role="img" aria-label="{caption}"><style>{_STYLE}</style>{legend}'
        f'<text x="58" y="38">{caption}</text>'
        f'<g transform="translate(0 {_HEADER})">{found[3]}</g></svg>\n'
    )
