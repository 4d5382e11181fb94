"""Rate-distortion curves: bits for an equal PSNR, and Bjøntegaard's mean difference of rates. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedloom.core.records import Array

_LEAST_POINTS = 4


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one codec, in order of rising rate."""

    rates: Array
    """Bits per pixel, (n,), rising."""
    qualities: Array
    """PSNR in dB, or MS-SSIM, (n,), rising."""

    @classmethod
    def of(cls, rates: Sequence[float] | Array, qualities: Sequence[float] | Array) -> Curve:
        """Return the points where a higher rate gives a better quality: others are left out."""
        kept = list[tuple[float, float]]()
        for rate, quality in sorted(zip(rates, qualities, strict=True)):
            if not kept or (quality > kept[-1][1] and rate > kept[-1][0]):
                kept.append((rate, quality))
        found = np.array(kept, np.float64).reshape(-1, 2)
        return cls(found[:, 0], found[:, 1])


def rate_at(curve: Curve, quality: float) -> float | None:
    """Return the bits per pixel at a quality, log-rate linear between points; None outside the curve."""
    if not len(curve.rates) or not curve.qualities[0] <= quality <= curve.qualities[-1]:
        return None
    return float(np.exp(np.interp(quality, curve.qualities, np.log(curve.rates))))


@dataclass(frozen=True, slots=True)
class BdRate:
    """Bjøntegaard's mean difference of rates at equal quality."""

    percent: float
    """NaN where it is not defined."""
    reason: str = ""
    """Why it is not."""

    @property
    def text(self) -> str:
        """Return the number, or `n/a` with the reason."""
        return f"{self.percent:+.1f} %" if math.isfinite(self.percent) else f"n/a ({self.reason})"


def bd_rate(anchor: Curve, tested: Curve) -> BdRate:
    """Return how much less (negative) or more a codec needs than another one, over their common qualities.

    Log-rates over quality are interpolated by monotone cubics (PCHIP) and integrated exactly.
    """
    for name, curve in (("anchor", anchor), ("tested codec", tested)):
        if len(curve.rates) < _LEAST_POINTS:
            return BdRate(math.nan, f"the {name} has {len(curve.rates)} points, four are needed")
    low = max(anchor.qualities[0], tested.qualities[0])
    high = min(anchor.qualities[-1], tested.qualities[-1])
    if not high > low:
        spans = [f"{curve.qualities[0]:.2f} to {curve.qualities[-1]:.2f}" for curve in (anchor, tested)]
        return BdRate(math.nan, f"qualities do not overlap: {spans[0]} against {spans[1]}")
    difference = _mean_log_rate(tested, low, high) - _mean_log_rate(anchor, low, high)
    return BdRate(100.0 * math.expm1(difference))


def _mean_log_rate(curve: Curve, low: float, high: float) -> float:
    x, y = curve.qualities, np.log(curve.rates)
    slopes = pchip_slopes(x, y)
    knots = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    points, weights = np.polynomial.legendre.leggauss(2)  # exact for cubics
    total = 0.0
    for start, stop in pairwise(knots):
        half = (stop - start) / 2
        total += float(half * (weights @ _hermite(x, y, slopes, start + half * (1 + points))))
    return total / (high - low)


def _hermite(x: Array, y: Array, slopes: Array, at: Array) -> Array:
    place = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    width = x[place + 1] - x[place]
    t = (at - x[place]) / width
    left = y[place] * (1 + 2 * t) * (1 - t) ** 2 + slopes[place] * width * t * (1 - t) ** 2
    right = y[place + 1] * t**2 * (3 - 2 * t) + slopes[place + 1] * width * t**2 * (t - 1)
    return np.asarray(left + right)


def pchip_slopes(x: Array, y: Array) -> Array:
    """Return the slopes of Fritsch and Carlson's monotone cubics at the points, (n,), n >= 3."""
    h, d = np.diff(x), np.diff(y) / np.diff(x)
    slopes = np.zeros(len(x))
    same = d[:-1] * d[1:] > 0
    one, other = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(divide="ignore"):
        slopes[1:-1] = np.where(same, (one + other) / (one / d[:-1] + other / d[1:]), 0.0)
    slopes[0] = _edge(h[0], h[1], d[0], d[1])
    slopes[-1] = _edge(h[-1], h[-2], d[-1], d[-2])
    return slopes


def _edge(h: float, other_h: float, d: float, other_d: float) -> float:
    slope = ((2 * h + other_h) * d - h * other_d) / (h + other_h)
    if slope * d <= 0:
        return 0.0
    return float(3 * d if d * other_d < 0 and abs(slope) > 3 * abs(d) else slope)
