"""Scales and ticks for the charts: from data to round numbers on an axis.

Source of the tick rule: P. Heckbert, "Nice numbers for graph labels", Graphics Gems (1990): steps of 1, 2 or 5 times
a power of ten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Linear map from [low, high] of the data to [start, end] of the drawing (pixels). low < high."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of `value`; values outside the data range are clamped to the edge."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that can be drawn."""
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def nice_step(span: float, count: int) -> float:
    """The round step (1, 2, 5 x 10^k) that cuts `span` into about `count` parts."""
    raw = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return next((m * power for m in (1.0, 2.0, 5.0) if m * power >= raw * 0.999), 10.0 * power)


def nice_range(low: float, high: float, count: int = 5) -> tuple[float, float, list[float]]:
    """(low, high, ticks): the range widened to round numbers, and the ticks on it. A point range is widened by one."""
    if low == high:
        low, high = (low - abs(low) * 0.5, high + abs(high) * 0.5) if low else (0.0, 1.0)
    step = nice_step(high - low, count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(i * step, 12) for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def tick_label(value: float) -> str:
    """A tick as short text: 1500 -> 1,500; 0.05 -> 0.05; 2000000 -> 2M."""
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"
