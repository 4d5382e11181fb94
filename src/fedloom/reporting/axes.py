"""The coordinate system of a chart: ranges, ticks, and positions of values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
_FLAT = 1e-6
"""A range that is a smaller fraction of its values than this is rounding, not a curve."""


def finite(values: Iterable[float]) -> list[float]:
    """Return the values that can be drawn."""
    return [value for value in values if math.isfinite(value)]


def ticks(low: float, high: float, most: int = 5, whole: bool = False) -> list[float]:
    """Round values between `low` and `high`, at most about `most` of them; integers only if `whole`."""
    raw = (high - low) / max(most - 1, 1)
    if not (raw > 0 and math.isfinite(raw)):
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in _STEPS if factor * power >= raw * (1 - 1e-9)), 10 * power)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float, step: float) -> str:
    """Return a tick's label, with the digits its step needs."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-4:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 2
    if abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
        digits += 1
    return f"{value:,.{min(digits, 6)}f}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """An interval of values, never empty."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], *, from_zero: bool = False) -> Range:
        """Return the interval that contains all finite values.

        Args:
            values: the values to show; infinities and NaN are ignored.
            from_zero: whether zero must be included.
        """
        seen = finite(values)
        low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
        if from_zero or 0 < low < 0.25 * high:
            low = min(low, 0.0)
        flat = high - low <= _FLAT * max(abs(low), abs(high))
        if flat and 0 < low <= 1:
            return cls(low=0.0, high=1.0)  # one share, or one number like it
        if flat:
            half = abs(high) / 10 or 0.5
            return cls(low=low - half if low and not from_zero else low, high=high + half)
        return cls(low=low, high=high)

    def to_ticks(self) -> Range:
        """Return the range widened to the next tick at either end, so that the grid frames the curve."""
        span = self
        while True:  # a wider range may take a larger step; it ends, for steps only grow
            marks = ticks(span.low, span.high)
            step = marks[1] - marks[0] if len(marks) > 1 else 0.0
            low = marks[0] - step if span.low < marks[0] - _FLAT * step else marks[0]
            high = marks[-1] + step if span.high > marks[-1] + _FLAT * step else marks[-1]
            if step == 0 or (low, high) == (marks[0], marks[-1]):
                return span if step == 0 else Range(low=low, high=high)
            span = Range(low=low, high=high)

    def share(self, value: float) -> float:
        """Return a value's relative position: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plane:
    """A chart's rectangle, in SVG units, and the ranges of its two axes."""

    width: float = 460.0
    height: float = 240.0
    left: float = 58.0
    right: float = 14.0
    top: float = 10.0
    bottom: float = 40.0
    x: Range
    y: Range

    def across(self, value: float) -> float:
        """Return the horizontal coordinate of an x value."""
        return self.left + self.x.share(value) * (self.width - self.left - self.right)

    def down(self, value: float) -> float:
        """Return the vertical coordinate of a y value."""
        return self.height - self.bottom - self.y.share(value) * (self.height - self.top - self.bottom)


def bins(length: int, most: int) -> list[tuple[int, int]]:
    """Cut `length` items into at most `most` runs [start, stop) of almost equal length."""
    parts = min(length, most)
    return [(index * length // parts, (index + 1) * length // parts) for index in range(parts)]


def thinned(x: Sequence[float], y: Sequence[float], most: int = 400) -> list[tuple[float, float]]:
    """Return a curve's points; of a long one, each piece's lowest and highest, so that peaks remain visible."""
    if len(x) <= most:
        return list(zip(x, y, strict=True))
    chosen: set[int] = {0, len(x) - 1}
    for start, stop in bins(len(x), most // 2):
        drawn = [index for index in range(start, stop) if math.isfinite(y[index])]
        chosen |= {min(drawn, key=y.__getitem__), max(drawn, key=y.__getitem__)} if drawn else {start}
    return [(x[index], y[index]) for index in sorted(chosen)]
