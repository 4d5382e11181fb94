"""Selections a second way: draws against their probabilities, greedy rules against a literal search."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fedloom.core.seeds import generator
from fedloom.selection._choosing.balance import divergence, imbalance
from fedloom.selection._choosing.coverage import euclidean, facility_location
from fedloom.selection._choosing.sampling import Floats, systematic, weighted
from fedloom.selection.firing_credit import rules
from fedloom.selection.optimal_sampling.selection import inclusion_probabilities

RNG = generator(1, "selections a second way")


def test_a_systematic_draw_has_its_inclusion_probabilities() -> None:
    p, draws = inclusion_probabilities(RNG.exponential(size=12) ** 3, 5), 8000
    counts = np.zeros(12)
    for _ in range(draws):
        counts[systematic(p, RNG)] += 1
    assert np.abs(counts / draws - p).max() < 4 * 0.5 / math.sqrt(draws)


def test_a_weighted_draw_is_one_after_the_other() -> None:
    w, draws = np.array([1.0, 2.0, 3.0, 4.0]), 12_000
    counts = np.zeros((4, 4))
    for _ in range(draws):
        first, second = weighted(np.log(w), 2, RNG)
        counts[first, second] += 1
    want = w[:, None] / 10 * w[None, :] / (10 - w[:, None]) * (1 - np.eye(4))
    assert np.abs(counts / draws - want).max() < 4 * 0.5 / math.sqrt(draws)


def test_imbalance_is_the_sum_over_pairs_and_divergence_the_definition() -> None:
    q, n = RNG.dirichlet(np.full(10, 0.3), 6), RNG.integers(10, 90, 6).astype(np.float64)
    pool = (n[:, None] * q).sum(0)
    pairs = sum(n[i] * n[j] * q[i] @ q[j] for i in range(6) for j in range(6)) / n.sum() ** 2 - 1 / 10
    assert imbalance(pool[None])[0] == pytest.approx(pairs)
    shares = pool / pool.sum()
    assert divergence(pool[None])[0] == pytest.approx(sum(x * math.log(x * 10) for x in shares))


def test_facility_location_is_the_literal_greedy_search() -> None:
    apart = euclidean(RNG.normal(size=(15, 20)))
    chosen: list[int] = []
    for _ in range(5):
        left = [j for j in range(15) if j not in chosen]
        costs = {j: sum(min(apart[i, s] for s in [*chosen, j]) for i in range(15)) for j in left}
        chosen.append(min(left, key=lambda j: costs[j]))
    assert facility_location(apart, 5).tolist() == chosen


def test_credits_and_the_default_rule_are_their_definitions() -> None:
    before = RNG.uniform(size=(20, 10))
    after = np.clip(before + 0.1 * RNG.normal(size=(20, 10)), 0, 1)
    change, examples = after - before, RNG.integers(5, 90, 20).astype(np.float64)
    credit = np.array([rules.credits(one, other) for one, other in zip(before, after, strict=True)])
    np.testing.assert_allclose(credit, np.abs(change).sum(1))
    gains = np.maximum(change, 0) * examples[:, None]
    shortlist, pool, chosen = sorted(np.argsort(-credit, kind="stable")[:10].tolist()), np.zeros(10), list[int]()

    def uneven(z: Floats) -> float:
        return float(((z / z.sum() - 0.1) ** 2).sum())

    for _ in range(5):
        left = [k for k in shortlist if k not in chosen]
        chosen.append(min(left, key=lambda k: uneven(pool + gains[k])))
        pool = pool + gains[chosen[-1]]
    assert list(rules.shortlist_balance(credit, gains, 5)) == chosen


def test_equal_credits_choose_everybody_alike() -> None:
    counts, draws = np.zeros(20), 4000
    for _ in range(draws):
        order = RNG.permutation(20)
        counts[order[rules.choose("topm", np.zeros(20), None, 5, RNG)]] += 1
    expected = draws * 5 / 20
    assert ((counts - expected) ** 2 / expected).sum() < 19 + 4 * math.sqrt(2 * 19)
