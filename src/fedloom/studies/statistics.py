"""The statistics of a study: censored rounds to target, budgets, paired comparisons. NumPy only, no randomness inside.

T is the number of rounds of a run, n the number of seeds. Runs of two arms are paired by seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedloom.core.ranks import ranks

Floats = npt.NDArray[np.float64]
LEVEL = 0.95
"""Confidence of the intervals."""

FEW = 5
"""Number of seeds up to which a page says what they can show."""
NORMAL = 1.959964
"""Quantile of the standard normal distribution for `LEVEL`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number over seeds with its interval; of paired numbers also one-sided p-values."""

    value: float
    low: float
    """Lower end of the interval; minus infinity where the seeds are too few for one."""
    high: float
    """Upper end of the interval; infinity where the seeds are too few for one."""
    count: int
    """Number of seeds, or pairs."""
    level: float = LEVEL
    """Confidence of the interval, smaller than `LEVEL` where so few seeds cannot give more."""
    sampling: float | None = None
    """Standard error that the held-out examples add to that of the seeds, part of the interval; None if unknown."""
    p_less: float | None = None
    """Wilcoxon's p for "the arm's number is smaller than the reference's"; None if nothing is paired."""
    p_greater: float | None = None
    """The same for "is larger"."""


def rounds_to_target(values: Sequence[float], target: float, *, higher: bool = True) -> tuple[int, bool]:
    """Return the first round t (from 1) whose value reaches the target, min{t : v_t >= target}; T + 1 if none does.

    Args:
        values: the metric after each of the T rounds; NaN (not evaluated) never reaches anything.
        target: value to reach.
        higher: whether larger is better; otherwise v_t <= target counts.

    Returns:
        The round, and whether it was censored (never reached).
    """
    reached = np.asarray(values, np.float64) * (1.0 if higher else -1.0) >= target * (1.0 if higher else -1.0)
    return (int(np.argmax(reached)) + 1, False) if reached.any() else (len(reached) + 1, True)


def cost_to_target(costs: Sequence[float], round_reached: int) -> float:
    """Cumulative cost at the round that reached the target; of a censored run the T rounds' cost times (T + 1) / T."""
    total = len(costs)
    return float(costs[round_reached - 1]) if round_reached <= total else float(costs[-1]) * (total + 1) / total


def area(values: Sequence[float]) -> float:
    """AUC, the mean over the evaluated rounds, (1/T) sum_t v_t."""
    return float(np.nanmean(np.asarray(values, np.float64)))


def final(values: Sequence[float], last: int) -> float:
    """Return the mean of the last `last` evaluated rounds."""
    seen = np.asarray(values, np.float64)
    return float(seen[np.isfinite(seen)][-last:].mean())


def area_over(costs: Sequence[float], values: Sequence[float], low: float, high: float) -> float:
    """Mean of a curve over costs in [low, high]: (1/(high - low)) times the integral of its linear interpolation.

    Args:
        costs: cumulative cost after each round (local trainings, values sent, bytes), not decreasing.
        values: the metric after each round; rounds with NaN are omitted.
        low: start of the range, at least the first cost.
        high: its end, at most the last cost, above `low`.
    """
    x, y = np.asarray(costs, np.float64), np.asarray(values, np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    at = np.unique(np.concatenate([[low, high], x[(x > low) & (x < high)]]))
    heights = np.interp(at, x, y)
    return float(np.sum(np.diff(at) * (heights[1:] + heights[:-1]) / 2) / (high - low))


def areas_at_equal_cost(
    costs: Sequence[float], values: Sequence[float], other_costs: Sequence[float], other_values: Sequence[float]
) -> tuple[float, float]:
    """Return `area_over` of two runs over the costs both have reached: from the larger first to the smaller last cost.

    NaN for both if they share no range.
    """
    low, high = max(costs[0], other_costs[0]), min(costs[-1], other_costs[-1])
    if not high > low:
        return math.nan, math.nan
    return area_over(costs, values, low, high), area_over(other_costs, other_values, low, high)


def finals_at_equal_cost(
    costs: Sequence[float],
    values: Sequence[float],
    other_costs: Sequence[float],
    other_values: Sequence[float],
    *,
    last: int,
) -> tuple[float, float]:
    """Return both runs' values at the total cost of the cheaper one.

    A run's value is the mean of its last `last` evaluated rounds (as `final`), between two rounds interpolated
    linearly. A run whose first round costs more than that has its first round's value.
    """
    spent = min(costs[-1], other_costs[-1])
    return _so_far(costs, values, spent, last), _so_far(other_costs, other_values, spent, last)


def _so_far(costs: Sequence[float], values: Sequence[float], spent: float, last: int) -> float:
    x, y = np.asarray(costs, np.float64), np.asarray(values, np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    running = [float(y[max(0, index + 1 - last) : index + 1].mean()) for index in range(len(y))]
    return float(np.interp(spent, x, running))


def wilcoxon(differences: npt.ArrayLike) -> tuple[float, float]:
    """Compute Wilcoxon's signed-rank test, exact: one-sided p for "smaller than 0" and for "larger than 0".

    Zero differences are omitted, ties share mean ranks. W+ is the sum of the ranks of |d| where d > 0; under the null
    hypothesis each of the 2^n choices of signs is equally likely, and p_less = P(W+ <= observed), p_greater =
    P(W+ >= observed), counted by dynamic programming over doubled (hence whole) ranks. Two 1s if nothing differs.
    """
    d = np.asarray(differences, np.float64)
    d = d[d != 0]
    if not len(d):
        return 1.0, 1.0
    doubled = np.rint(2 * ranks(np.abs(d))).astype(np.int64)
    chances = np.zeros(int(doubled.sum()) + 1)
    chances[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(chances)
        shifted[rank:] = chances[:-rank]
        chances = (chances + shifted) / 2
    observed = int(doubled[d > 0].sum())
    return min(1.0, float(chances[: observed + 1].sum())), min(1.0, float(chances[observed:].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being tested together, in the given order (Holm 1979, section 2).

    With p_(1) <= … <= p_(m) the corrected value of p_(i) is max over j <= i of min(1, (m + 1 - j) p_(j)).
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * float(p_values[index])))
        corrected[index] = largest
    return corrected


def mean_estimate(values: Sequence[float]) -> Estimate | None:
    """Return the mean of the finite values with Student's t-interval; None if there are none.

    The interval is mean ± t · s / √n, with t the (1 + LEVEL) / 2 quantile for n - 1 degrees of freedom and s the sample
    standard deviation. For normal values it covers `LEVEL` at every n >= 2; for skewed ones a little less.

    Args:
        values: one per seed.
    """
    found = _finite(values)
    if not len(found):
        return None
    value, count = float(found.mean()), len(found)
    if count == 1:
        return Estimate(value=value, low=-math.inf, high=math.inf, count=1)
    half = t_quantile(count - 1) * float(found.std(ddof=1)) / math.sqrt(count)
    return Estimate(value=value, low=value - half, high=value + half, count=count)


def with_sampling(found: Estimate, scores: Floats) -> Estimate:
    """Widen an interval over seeds by the sampling error of the held-out examples, which all seeds share.

    Seeds repeat training, not the test set. With d_i the mean over seeds of what example i contributes (to a
    difference of two arms: 1 if only the arm is right, -1 if only the other, 0 else), the standard error of its mean
    over N examples is e = sd(d_i) / √N. The half-width becomes √(h² + (t e)²), h that of the seeds and t the quantile
    for N - 1 degrees of freedom.

    Args:
        found: the estimate over seeds.
        scores: contributions, float64 [seeds, N], N >= 2.
    """
    means = scores.mean(axis=0)
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    found = replace(found, sampling=error)
    if not math.isfinite(found.low):
        return found
    beyond = t_quantile(len(means) - 1) * error
    low = found.value - math.hypot(found.value - found.low, beyond)
    return replace(found, low=low, high=found.value + math.hypot(found.high - found.value, beyond))


def what_seeds_show(count: int) -> str:
    """Return the limits of so few seeds, in words: the width of an interval, and the smallest p-value."""
    if count < 2:
        return "One seed has no spread, so no claim can be decided."
    width = t_quantile(count - 1) / math.sqrt(count)
    return (
        f"With {count} seeds an interval reaches {width:.1f} standard deviations of the seeds' differences to each "
        f"side, so that smaller effects stay undecided; the least p-value of a one-sided signed-rank test is "
        f"{0.5**count:.3f}."
    )


def median_estimate(values: Sequence[float]) -> Estimate | None:
    """Return the median of the finite values with an interval of order statistics; None if there are none.

    [x_(k), x_(n+1-k)] covers the median of any continuous distribution with 1 - 2 P(Binomial(n, 1/2) < k). The largest
    k with at least `LEVEL` is taken; below six values even k = 1 has less, which `level` then says.

    Args:
        values: one per seed.
    """
    found = np.sort(_finite(values))
    count = len(found)
    if not count:
        return None
    covers = [1 - 2 * sum(math.comb(count, below) for below in range(k)) / 2**count for k in range(1, count // 2 + 1)]
    k = max((index for index, level in enumerate(covers, 1) if level >= LEVEL), default=1)
    if count == 1:
        return Estimate(value=float(found[0]), low=-math.inf, high=math.inf, count=1)
    low, high = float(found[k - 1]), float(found[count - k])
    return Estimate(value=float(np.median(found)), low=low, high=high, count=count, level=min(LEVEL, covers[k - 1]))


@functools.lru_cache(maxsize=64)
def t_quantile(freedom: int) -> float:
    """Return the t with P(|T| <= t) = `LEVEL` for Student's distribution with these degrees of freedom.

    Found by bisection in Abramowitz and Stegun 1964, equations 26.7.3 and 26.7.4.

    Args:
        freedom: degrees of freedom, >= 1.
    """
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < LEVEL else (low, middle)
    return (low + high) / 2


def _within(t: float, freedom: int) -> float:
    """P(|T| <= t): a finite series in the angle theta = arctan(t / sqrt(nu))."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for index in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (index - 1) / index
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def paired_difference(arm: Sequence[float], reference: Sequence[float]) -> Estimate | None:
    """Return the mean of a_s - r_s over the seeds s, with interval and one-sided p-values."""
    apart = np.asarray(arm, np.float64) - np.asarray(reference, np.float64)
    return _with_p(mean_estimate(apart.tolist()), apart)


def paired_ratio(arm: Sequence[float], reference: Sequence[float]) -> Estimate | None:
    """Return the median of a_s / r_s over the seeds s, with interval; p-values are those of the differences a_s - r_s.

    None if a number is not positive.
    """
    a, r = np.asarray(arm, np.float64), np.asarray(reference, np.float64)
    known = np.isfinite(a) & np.isfinite(r)
    if not known.any() or not (a[known].min() > 0 and r[known].min() > 0):
        return None
    return _with_p(median_estimate((a / r).tolist()), a - r)


def _with_p(found: Estimate | None, apart: Floats) -> Estimate | None:
    less, greater = wilcoxon(apart[np.isfinite(apart)])
    return replace(found, p_less=less, p_greater=greater) if found else None


def _finite(values: Sequence[float]) -> Floats:
    found = np.asarray(values, np.float64)
    return found[np.isfinite(found)]
