"""How time and memory grow with one size while the others rest, and the fitted exponents."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from aggregations.cohorts import best_time, closed, round_of_size
from aggregations.peaks import measured

from aggregator_service.aggregation.composition import Recipe

__all__ = ["growth"]

_BASE = {"d": 1024, "r": 8, "U": 8, "layers": 8}
_COLOURS = {"U": "#4269d0", "r": "#ff725c", "d": "#3ca951", "layers": "#a463f2"}


@dataclass(frozen=True)
class Curve:
    """One method over one size."""

    method: str
    varied: str
    sizes: Sequence[int]
    milliseconds: Sequence[float]
    megabytes: Sequence[float]


def growth(
    recipes: Mapping[str, Recipe], device: torch.device, *, quick: bool, plot: Path
) -> list[str]:
    """The section of the page; the plot is written beside it."""
    sweeps = {
        "U": [8, 16, 32] if quick else [8, 16, 32, 64, 128, 256],
        "r": [4, 8, 16] if quick else [4, 8, 16, 32],
        "d": [512, 1024, 2048] if quick else [512, 1024, 2048, 4096, 8192],
        "layers": [8, 16, 32] if quick else [8, 16, 32, 64, 128],
    }
    curves = []
    lines = [
        "## Growth",
        "",
        (
            "A round of 8 layers (d = 1024, r = 8, U = 8 where not varied): its time, and its "
            "peak of memory above the updates in a process whose allocator keeps nothing back, "
            "each with the fitted exponent."
        ),
        "",
        "| varied | from | to | " + " | ".join(f"{n}, ms | {n}, MB" for n in recipes) + " |",
        "|---|---:|---:|" + "---:|---:|" * len(recipes),
    ]
    for varied, sizes in sweeps.items():
        cells = []
        for name, recipe in recipes.items():
            rounds = [{**_BASE, varied: size, "method": name} for size in sizes]
            times = _times(recipe, varied, sizes, device)
            curve = Curve(name, varied, sizes, times, measured(rounds))
            curves.append(curve)
            time, memory = (_slope(sizes, y) for y in (curve.milliseconds, curve.megabytes))
            ends = ((y[0], y[-1]) for y in (curve.milliseconds, curve.megabytes))
            cells += [
                f"{first:.3g} → {last:.3g}, ^{slope:.2f}"
                for (first, last), slope in zip(ends, (time, memory), strict=True)
            ]
        lines.append(f"| {varied} | {sizes[0]} | {sizes[-1]} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    plot.write_text(_svg(curves), encoding="utf-8")
    return [*lines, "", f"![growth]({plot.name})", ""]


def _times(
    recipe: Recipe, varied: str, sizes: Sequence[int], device: torch.device
) -> Sequence[float]:
    """Milliseconds."""
    times = []
    for size in sizes:
        now = {**_BASE, varied: size}
        cohorts = round_of_size(now["d"], now["r"], now["U"], now["layers"], device)
        close = functools.partial(closed, recipe, cohorts, now["r"], device)
        times.append(1e3 * best_time(close, device, seconds=0.5))
    return times


def _slope(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Of log(value) over log(size), by least squares; NaN where a value is not positive."""
    if min(values) <= 0:
        return math.nan
    x = torch.tensor([math.log(s) for s in sizes], dtype=torch.float64)
    y = torch.tensor([math.log(v) for v in values], dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / (x @ x))


def _svg(curves: Sequence[Curve]) -> str:
    """Two panels, time and memory, log-log over multiples of the smallest size."""
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 320" '
        'font-family="sans-serif" font-size="12"><rect width="920" height="320" fill="white"/>'
    )
    parts = [head]
    parts += _panel(curves, 0, "ms", lambda c: c.milliseconds)
    parts += _panel(curves, 400, "MB", lambda c: c.megabytes)
    for i, (varied, colour) in enumerate(_COLOURS.items()):
        parts.append(f'<text x="820" y="{50 + 20 * i}" fill="{colour}">{varied}</text>')
    for i, (name, dash) in enumerate(_dashes(curves).items()):
        y = 150 + 20 * i
        parts.append(
            f'<path d="M820 {y - 4}h30" stroke="black" stroke-dasharray="{dash}"/>'
            f'<text x="856" y="{y}">{name}</text>'
        )
    return "".join([*parts, "</svg>\n"])


def _panel(
    curves: Sequence[Curve], left: float, unit: str, of: Callable[[Curve], Sequence[float]]
) -> list[str]:
    smallest = 1e-2
    values = [max(v, smallest) for c in curves for v in of(c)]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    widest = max(math.log2(c.sizes[-1] / c.sizes[0]) for c in curves)

    def height(value: float) -> float:
        return 280 - 250 * (math.log10(max(value, smallest)) - low) / (high - low)

    parts = []
    for power in range(low, high + 1):
        y = height(10.0**power)
        parts.append(f'<path d="M{left + 70} {y:.1f}H{left + 380}" stroke="#ddd"/>')
        text = f"{10.0**power:g} {unit}"
        parts.append(f'<text x="{left + 62}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    for step in range(int(widest) + 1):
        x = left + 70 + 310 * step / widest
        parts.append(f'<text x="{x:.1f}" y="300" text-anchor="middle">{2**step}x</text>')
    dashes = _dashes(curves)
    for curve in curves:
        points = " ".join(
            f"{left + 70 + 310 * math.log2(s / curve.sizes[0]) / widest:.1f},{height(v):.1f}"
            for s, v in zip(curve.sizes, of(curve), strict=True)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{_COLOURS[curve.varied]}" '
            f'stroke-dasharray="{dashes[curve.method]}"/>'
        )
    return parts


def _dashes(curves: Sequence[Curve]) -> dict[str, str]:
    names = dict.fromkeys(c.method for c in curves)
    return dict(zip(names, ("4 3", "none", "1 3"), strict=False))
