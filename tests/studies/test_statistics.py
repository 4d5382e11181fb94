"""Every formula on numbers made by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedloom.core.seeds import generator
from fedloom.studies import statistics as s

NAN = math.nan


@pytest.mark.parametrize(
    ("values", "target", "higher", "expected"),
    [
        ([0.1, 0.5, 0.4, 0.9], 0.5, True, (2, False)),  # equal is reached, later falls do not matter
        ([0.1, 0.5, 0.4], 0.6, True, (4, True)),  # T + 1
        ([NAN, 0.2, NAN, 0.7], 0.6, True, (4, False)),  # rounds that were not evaluated
        ([2.0, 1.0, 0.5], 1.0, False, (2, False)),
        ([2.0, 1.5], 1.0, False, (3, True)),
    ],
)
def test_rounds_to_target(values: list[float], target: float, higher: bool, expected: tuple[int, bool]) -> None:
    assert s.rounds_to_target(values, target, higher=higher) == expected


def test_cost_to_target_of_a_censored_run_is_one_rounds_more() -> None:
    costs = [5.0, 10.0, 15.0, 20.0]
    assert s.cost_to_target(costs, 2) == 10.0
    assert s.cost_to_target(costs, 5) == 25.0  # 20 x 5/4


def test_area_and_final_skip_rounds_that_were_not_evaluated() -> None:
    assert s.area([0.2, NAN, 0.6]) == pytest.approx(0.4)
    assert s.final([0.9, 0.2, NAN, 0.6], last=2) == pytest.approx(0.4)


def test_area_over_is_the_integral_of_the_linear_interpolation() -> None:
    # From (10, 0.0) to (20, 1.0) to (40, 0.0): over [15, 30] it is 0.5 -> 1 -> 0.5, mean
    # (5 * 0.75 + 10 * 0.75) / 15 = 0.75; over the whole (10 * 0.5 + 20 * 0.5) / 30 = 0.5.
    costs, values = [10.0, 20.0, 40.0], [0.0, 1.0, 0.0]
    assert s.area_over(costs, values, 15.0, 30.0) == pytest.approx(0.75)
    assert s.area_over(costs, values, 10.0, 40.0) == pytest.approx(0.5)
    # A round that was not evaluated leaves its neighbours joined.
    assert s.area_over([10.0, 15.0, 20.0], [0.0, NAN, 1.0], 10.0, 20.0) == pytest.approx(0.5)


def test_finals_at_equal_cost_are_read_where_the_cheaper_run_ends() -> None:
    # Run A spends 40 in all, run B 30 a round. Means of the last two rounds: A 0, 0, 0.2, 0.5; B 0.2, 0.5.
    a = ([10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 0.4, 0.6])
    b = ([30.0, 60.0], [0.2, 0.8])
    ours, theirs = s.finals_at_equal_cost(*a, *b, last=2)
    assert ours == pytest.approx(0.5) and theirs == pytest.approx(0.2 + 0.3 / 3)
    # A run whose first round is dearer than that is given its first round.
    assert s.finals_at_equal_cost([1.0, 2.0], [0.1, NAN], *b, last=1) == pytest.approx((0.1, 0.2))


def test_a_ratio_of_numbers_that_do_not_apply_is_none() -> None:
    assert s.paired_ratio([NAN, NAN], [1.0, 2.0]) is None
    assert s.paired_ratio([0.0, 2.0], [1.0, 2.0]) is None


def test_areas_at_equal_cost_use_the_common_range_only() -> None:
    # Run A costs 10 a round, run B 30: they share [30, 40].
    a = ([10.0, 20.0, 30.0, 40.0], [0.0, 0.0, 0.4, 0.6])
    b = ([30.0, 60.0], [0.2, 0.8])
    ours, theirs = s.areas_at_equal_cost(*a, *b)
    assert ours == pytest.approx(0.5)
    assert theirs == pytest.approx((0.2 + 0.4) / 2)  # at 40 B's line is at 0.2 + 0.6 / 3
    assert all(map(math.isnan, s.areas_at_equal_cost([10.0, 20.0], [0.1, 0.2], [30.0, 60.0], [0.1, 0.2])))


def test_wilcoxon_counts_all_signs() -> None:
    # Five negative differences without ties: only the observed signs give W+ = 0, so p_less is 1/32.
    assert s.wilcoxon([-1.0, -2.0, -3.0, -4.0, -5.0]) == pytest.approx((1 / 32, 1.0))
    assert s.wilcoxon([0.0, 0.0]) == (1.0, 1.0)
    assert s.wilcoxon([]) == (1.0, 1.0)


@pytest.mark.parametrize("differences", [[-3.0, 1.0, -2.0, 5.0, -4.0, -6.0], [-1.0, -1.0, 2.0, 0.0, -2.0, -3.0, 1.0]])
def test_wilcoxon_is_the_enumeration(differences: list[float]) -> None:
    kept = np.array([value for value in differences if value])
    ranks = stats.rankdata(np.abs(kept))
    observed = ranks[kept > 0].sum()
    sums = [float(np.dot(ranks, signs)) for signs in itertools.product([0, 1], repeat=len(kept))]
    less = np.mean([total <= observed for total in sums])
    greater = np.mean([total >= observed for total in sums])
    assert s.wilcoxon(differences) == pytest.approx((less, greater))


def test_wilcoxon_agrees_with_scipy_without_ties() -> None:
    differences = generator(3, "differences").normal(0.4, 1.0, size=12)
    less, greater = s.wilcoxon(differences)
    assert less == pytest.approx(stats.wilcoxon(differences, alternative="less", mode="exact").pvalue)
    assert greater == pytest.approx(stats.wilcoxon(differences, alternative="greater", mode="exact").pvalue)


def test_the_t_quantile_is_students() -> None:
    for freedom in (1, 2, 3, 4, 5, 9, 30, 99):
        assert s.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=1e-12)


def test_the_mean_has_students_interval() -> None:
    # Mean 4; squared deviations 9, 4, 0, 25 sum to 38, so s² = 38 / 3; t with 3 degrees of freedom is 3.1824.
    half = 3.182446305 * math.sqrt(38 / 3) / 2
    found = s.mean_estimate([1.0, 2.0, 4.0, 9.0, NAN])
    assert found is not None
    assert (found.value, found.count, found.level, found.p_less) == (4.0, 4, 0.95, None)
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half))
    assert s.mean_estimate([NAN]) is None
    same, alone = s.mean_estimate([3.0, 3.0]), s.mean_estimate([3.0])
    assert same is not None and (same.low, same.high) == (3.0, 3.0)
    assert alone is not None and (alone.low, alone.high) == (-math.inf, math.inf)


@pytest.mark.parametrize("count", [3, 5, 8, 16])
@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_of_means_cover(count: int, skewed: bool) -> None:
    """For normal values 95 %; for gamma values of shape 4, whose skewness is 1, at least 93 %."""
    rng = generator(1, "coverage", count)
    values = rng.gamma(4.0, size=(20_000, count)) - 4.0 if skewed else rng.normal(size=(20_000, count))
    half = s.t_quantile(count - 1) * values.std(axis=1, ddof=1) / np.sqrt(count)
    found = s.mean_estimate(values[0].tolist())
    assert found is not None and found.high - found.value == pytest.approx(half[0])
    covered = np.mean(np.abs(values.mean(axis=1)) <= half)
    noise = 3 * math.sqrt(0.95 * 0.05 / 20_000)
    assert covered >= (0.93 if skewed else 0.95 - noise)


@pytest.mark.parametrize(("count", "k", "level"), [(3, 1, 1 - 2 / 8), (5, 1, 1 - 2 / 32), (8, 1, 0.95), (9, 2, 0.95)])
def test_the_median_has_an_interval_of_order_statistics(count: int, k: int, level: float) -> None:
    # P(Binomial(8, 1/2) < 2) = 9/256, so [x_2, x_7] covers 93 % only; with nine, 10/512 a side: [x_2, x_8] covers 96 %.
    values = [float(value * value) for value in range(count)]
    found = s.median_estimate(values[::-1])
    assert found is not None
    assert (found.value, found.low, found.high) == (float(np.median(values)), values[k - 1], values[count - k])
    assert found.level == pytest.approx(level)


def test_holm_corrects_in_steps() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5 times 4, 3, 2, 1: 0.04, 0.06, 0.06 and 0.5, never falling.
    assert s.holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert s.holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert s.holm([]) == []


def test_paired_difference_and_ratio() -> None:
    arm, reference = [10.0, 12.0, 9.0, 30.0], [20.0, 20.0, 18.0, 20.0]
    difference = s.paired_difference(arm, reference)
    assert difference is not None
    assert difference.value == pytest.approx((-10 - 8 - 9 + 10) / 4)
    ratio = s.paired_ratio(arm, reference)
    assert ratio is not None
    assert ratio.value == pytest.approx((0.5 + 0.6) / 2)  # the middle of 0.5, 0.5, 0.6, 1.5
    assert (ratio.low, ratio.high, ratio.level) == pytest.approx((0.5, 1.5, 1 - 2 / 16))
    # |d| = 10, 8, 9, 10 have ranks 3.5, 1, 2, 3.5: W+ = 3.5. Signs with W+ <= 3.5: {}, 1, 2, 3, 3.5, 3.5 = 6 of 16.
    assert (ratio.p_less, difference.p_less) == pytest.approx((6 / 16, 6 / 16))
    assert s.paired_ratio([0.0, 1.0], [1.0, 1.0]) is None
    assert s.paired_difference([], []) is None
