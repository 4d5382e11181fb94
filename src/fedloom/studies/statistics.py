"""The statistics of a study: censored rounds to target, budgets, paired comparisons. NumPy only, no randomness inside.

T is the number of rounds of a run, n the number of seeds. Runs of two arms are paired by seed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedloom.core.ranks import ranks
from fedloom.core.records import Array
from fedloom.core.seeds import generator

Floats = npt.NDArray[np.float64]
RESAMPLES = 5000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number over seeds with its interval; of paired numbers also one-sided p-values."""

    value: float
    low: float
    """2.5 % quantile of the bootstrap."""
    high: float
    """97.5 % quantile of the bootstrap."""
    count: int
    """Seeds, or pairs, it is made of."""
    p_less: float | None = None
    """Wilcoxon's p for "the arm's number is smaller than the reference's"; None where nothing is paired."""
    p_greater: float | None = None
    """The same for "is larger"."""


def rounds_to_target(values: Sequence[float], target: float, *, higher: bool = True) -> tuple[int, bool]:
    """The first round t (from 1) whose value reaches the target, min{t : v_t >= target}; T + 1 where none does.

    Args:
        values: the metric after each of the T rounds; NaN (not evaluated) never reaches anything.
        target: value to reach.
        higher: whether larger is better; else v_t <= target counts.

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
    """The mean of the last `last` evaluated rounds."""
    seen = np.asarray(values, np.float64)
    return float(seen[np.isfinite(seen)][-last:].mean())


def area_over(costs: Sequence[float], values: Sequence[float], low: float, high: float) -> float:
    """Mean of a curve over costs in [low, high]: (1/(high - low)) times the integral of its linear interpolation.

    Args:
        costs: cumulative cost after each round (local trainings, values sent, bytes), not decreasing.
        values: the metric after each round; rounds with NaN are left out.
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
    """`area_over` of two runs over the costs both have passed: from the larger first to the smaller last cost.

    NaN for both where they share no range.
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
    """What two runs have come to when both have spent what the cheaper one spends in all.

    A run's value is the mean of its last `last` evaluated rounds (as `final`), between two rounds interpolated
    linearly. A run whose first round costs more than that is given its first round all the same.
    """
    spent = min(costs[-1], other_costs[-1])
    return _so_far(costs, values, spent, last), _so_far(other_costs, other_values, spent, last)


def _so_far(costs: Sequence[float], values: Sequence[float], spent: float, last: int) -> float:
    x, y = np.asarray(costs, np.float64), np.asarray(values, np.float64)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    running = [float(y[max(0, index + 1 - last) : index + 1].mean()) for index in range(len(y))]
    return float(np.interp(spent, x, running))


def wilcoxon(differences: npt.ArrayLike) -> tuple[float, float]:
    """Wilcoxon's signed-rank test, exact: p for "smaller than 0" and for "larger than 0", one-sided.

    Zero differences are left out, ties share mean ranks. W+ is the sum of the ranks of |d| where d > 0; under the null
    hypothesis each of the 2^n choices of signs is equally likely, and p_less = P(W+ <= observed), p_greater =
    P(W+ >= observed), counted by dynamic programming over doubled (hence whole) ranks. Two 1s where nothing differs.
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


def estimate(values: Sequence[float], *, seed: int, centre: Callable[..., Array] = np.mean) -> Estimate | None:
    """Centre of the finite values with a percentile bootstrap interval over seeds; None where there are none.

    Args:
        values: one per seed.
        seed: root of the resampling; the same for all estimates of as many values.
        centre: `np.mean` or `np.median`.
    """
    kept = np.asarray(values, np.float64)
    kept = kept[np.isfinite(kept)]
    if not len(kept):
        return None
    drawn = np.asarray(centre(kept[_resamples(seed, len(kept))], axis=1), np.float64)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value=float(centre(kept)), low=float(low), high=float(high), count=len(kept))


def paired_difference(arm: Sequence[float], reference: Sequence[float], *, seed: int) -> Estimate | None:
    """Mean of a_s - r_s over the seeds s, with interval and one-sided p-values."""
    apart = np.asarray(arm, np.float64) - np.asarray(reference, np.float64)
    return _with_p(estimate(apart.tolist(), seed=seed), apart)


def paired_ratio(arm: Sequence[float], reference: Sequence[float], *, seed: int) -> Estimate | None:
    """Median of a_s / r_s over the seeds s, with interval; the p-values are those of the differences a_s - r_s.

    None where a number is not positive.
    """
    a, r = np.asarray(arm, np.float64), np.asarray(reference, np.float64)
    known = np.isfinite(a) & np.isfinite(r)
    if not known.any() or not (a[known].min() > 0 and r[known].min() > 0):
        return None
    return _with_p(estimate((a / r).tolist(), seed=seed, centre=np.median), a - r)


def _with_p(found: Estimate | None, apart: Floats) -> Estimate | None:
    less, greater = wilcoxon(apart[np.isfinite(apart)])
    return replace(found, p_less=less, p_greater=greater) if found else None


@functools.lru_cache(maxsize=64)
def _resamples(seed: int, count: int) -> npt.NDArray[np.int64]:
    """Indices drawn with replacement, shape (RESAMPLES, count)."""
    return generator(seed, "bootstrap", count).integers(count, size=(RESAMPLES, count))
