"""Every formula on numbers made by hand."""

import math

import pytest
from scipy import stats

from fedloom.core import ranks
from fedloom.core.seeds import generator


def test_ranks_share_ties() -> None:
    assert ranks.ranks([10.0, 30.0, 10.0, 20.0]).tolist() == [1.5, 4.0, 1.5, 3.0]
    assert ranks.ranks([]).tolist() == []


def test_spearman() -> None:
    assert ranks.spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1.0)
    assert ranks.spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)
    # Ranks (1.5, 1.5, 3) and (1, 2, 3): centred (-.5, -.5, 1) and (-1, 0, 1) give 1.5 / sqrt(1.5 * 2).
    assert ranks.spearman([5, 5, 7], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(3.0))
    assert math.isnan(ranks.spearman([1, 1, 1], [1, 2, 3]))
    x, y = generator(1, "x").integers(5, size=40), generator(1, "y").random(40)
    assert ranks.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_separation_counts_pairs() -> None:
    scores, positive = [0.9, 0.4, 0.4, 0.1, 0.6], [True, True, False, False, False]
    pairs = [(p > n) + 0.5 * (p == n) for p in (0.9, 0.4) for n in (0.4, 0.1, 0.6)]
    assert ranks.separation(scores, positive) == pytest.approx(sum(pairs) / 6)
    assert math.isnan(ranks.separation(scores, [True] * 5))
