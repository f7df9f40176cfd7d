"""From values to pixels: axes with round tick marks, and numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Axis", "finite", "format_bytes", "format_number", "format_percent", "format_seconds"]


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are there and finite."""
    return [v for v in values if v is not None and math.isfinite(v)]


_SAME = 1e-9
"""of values: a spread below that share of them is none"""
_LEAST = 1e-300
"""a spread whose quarter is still far above the smallest number"""


@dataclass(frozen=True, slots=True)
class Axis:
    """A straight axis from `low` to `high` over `pixels`, linear or logarithmic."""

    low: float
    high: float
    start: float
    """pixel of `low`"""
    end: float
    """pixel of `high`"""
    log: bool = False

    @classmethod
    def over(
        cls,
        values: Iterable[float | None],
        start: float,
        end: float,
        *,
        zero: bool = False,
        log: bool = False,
    ) -> Axis:
        """An axis that holds the values with a little room, on round bounds.

        Args:
            values: what will be drawn.
            start: pixel of the lower end.
            end: pixel of the upper end.
            zero: begin at 0, as bars must.
            log: logarithmic; values of 0 and below then lie at the lower end.
        """
        numbers = finite(values) or [0.0, 1.0]
        if log:
            positive = [v for v in numbers if v > 0] or [0.1, 1.0]
            low = 10 ** math.floor(math.log10(min(positive)))
            high = 10 ** math.ceil(math.log10(max(positive)))
            return cls(low, high if high > low else low * 10, start, end, log=True)
        low, high = (
            (min(0.0, *numbers), max(0.0, *numbers)) if zero else (min(numbers), max(numbers))
        )
        size = max(abs(low), abs(high))
        # Values that differ in their last bits only have no round number between them.
        if high - low <= max(_SAME * size, _LEAST):
            room = max(0.5, 0.001 * size)
            low, high = (low, high + 1) if zero else (low - room, high + room)
        step = _nice_step((high - low) / 4)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values to mark, lowest first."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            stride = max(1, math.ceil((last - first) / 5))
            marks = [10.0**e for e in range(first, last + 1, stride)]
            if last - first == 1:
                marks[1:1] = [2 * self.low, 5 * self.low]
            return marks
        step = _nice_step((self.high - self.low) / 4)
        count = round((self.high - self.low) / step)
        # Rounded to the step's own digits, so that 0.30000000000000004 is 0.3.
        digits = max(0, 1 - math.floor(math.log10(step)))
        return [round(self.low + i * step, digits) for i in range(count + 1)]


def _nice_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def format_number(value: float | None) -> str:
    """Three significant digits, without an exponent where that is readable."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    digits = max(0, 2 - math.floor(math.log10(size)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def format_percent(value: float | None) -> str:
    """A share of 1 as per cent."""
    if value is None or not math.isfinite(value):
        return "–"
    percent = 100 * value
    if percent == 0:
        return "0\N{NO-BREAK SPACE}%"
    digits = 1 if abs(percent) >= 1 else 2 if abs(percent) >= 0.1 else 0
    return (
        f"{percent:.{digits}f}\N{NO-BREAK SPACE}%"
        if digits
        else f"{format_number(percent)}\N{NO-BREAK SPACE}%"
    )


def format_bytes(value: float) -> str:
    """Bytes in decimal units: kB, MB, GB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        # What is rounded to a thousand of the unit below is one of this.
        if value >= 0.9995 * size:
            return f"{format_number(value / size)} {unit}"
    return f"{value:.0f} B"


def format_seconds(value: float) -> str:
    """A span of time in at most two units."""
    if not math.isfinite(value):
        return "–"
    if value < 10:
        return f"{value:.1f} s"
    if value < 90:
        return f"{value:.0f} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"
