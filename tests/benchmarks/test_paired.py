"""The paired comparison: the bound of a median, and alternating order."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from benchmarks.paired import Numbers, pairs, table, upper_bound


def test_the_bound_is_the_order_statistic_of_a_binomial() -> None:
    ratios = [1.0, 1.1, 0.9, 1.2, 1.05, 0.95, 1.01, 1.02, 0.99, 1.3]
    # P(Bin(10, 1/2) <= 7) = 1 - (45 + 10 + 1) / 1024 = .945, too little; P(<= 8) = 1 - 11 / 1024
    bound = upper_bound(ratios)
    assert bound.value == sorted(ratios)[8] == 1.2
    assert bound.confidence == pytest.approx(1 - 11 / 1024)


def test_too_few_pairs_bound_nothing() -> None:
    assert upper_bound([1.0] * 4).value == math.inf  # even the largest of four holds with 15/16 only
    assert upper_bound([1.0] * 5).value == 1.0


def test_it_covers_the_median_as_often_as_it_says() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    covered = np.mean([upper_bound(list(draw)).value >= math.log(2) for draw in rng.exponential(size=(4000, 10))])
    assert covered == pytest.approx(1 - 11 / 1024, abs=4 * math.sqrt(0.011 * 0.989 / 4000))


def test_pairs_alternate_and_are_distinguished() -> None:
    order: list[str] = []

    def measure(tree: Path) -> Numbers:
        order.append(tree.name)
        return {"wall": 2.0 if tree.name == "here" else 4.0}

    found = pairs(measure, (Path("there"), Path("here")), 3, "A")
    assert order == ["there", "here", "here", "there", "there", "here"]
    assert found == [({"wall": 4.0}, {"wall": 2.0})] * 3
    assert "0.500" in table({"A": found}, 1.03)
