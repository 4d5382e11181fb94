"""SFedCA's credits and rules on numbers made by hand, and their invariances."""

import itertools
import math
import typing
from collections import Counter

import numpy as np
import pytest
from selecting import Fits

from fedloom.core.seeds import generator
from fedloom.selection.firing_credit import rules

BEFORE, AFTER = np.array([0.5, 0.25, 0.0, 1.0]), np.array([0.75, 0.0, 0.0, 0.5])  # changes +1/4, -1/4, 0, -1/2


@pytest.mark.parametrize(
    ("norm", "expected"),
    [("l1", 1.0), ("l2", math.sqrt(0.375)), ("signed", -0.5), ("positive", 0.25)],
)
def test_credits_by_hand(norm: rules.Norm, expected: float) -> None:
    assert rules.credits(BEFORE, AFTER, norm) == expected
    assert rules.credits(BEFORE.astype(np.float32), AFTER.astype(np.float32), norm) == expected
    assert rules.credits(AFTER, AFTER, norm) == 0.0  # no training, no credit


def test_a_credit_per_sample_does_not_let_samples_cancel() -> None:
    before = np.array([[0.0, 0.5], [1.0, 0.5]])
    after = np.array([[1.0, 0.5], [0.0, 0.0]])
    assert rules.credits(before, after, "per_sample") == (1.0 + 1.5) / 2
    assert rules.credits(before.mean(0), after.mean(0), "l1") == 0.25


@pytest.mark.parametrize("norm", ["l1", "l2", "signed", "positive", "per_sample"])
def test_credits_do_not_depend_on_the_order_of_neurons_or_samples(norm: rules.Norm) -> None:
    rng = generator(1, "rates")
    before, after = rng.uniform(size=(2, 7, 10))
    neurons, samples = rng.permutation(10), rng.permutation(7)
    if norm == "per_sample":
        shuffled = rules.credits(before[samples][:, neurons], after[samples][:, neurons], norm)
        assert shuffled == rules.credits(before, after, norm)
    else:
        assert rules.credits(before[0][neurons], after[0][neurons], norm) == rules.credits(before[0], after[0], norm)


def test_gains_are_the_positive_changes_by_examples() -> None:
    assert rules.weighted_gains([[0.5, -0.25], [0.0, 1.0]], [10, 4]).tolist() == [[5.0, 0.0], [0.0, 4.0]]


KAPPA = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
GAINS = np.array([[9.0, 0, 0], [8.0, 0, 0], [0, 7.0, 0], [0, 0, 6.0], [1.0, 1.0, 1.0]])


def test_topm_and_lowest_by_hand() -> None:
    assert rules.topm(KAPPA, 2).tolist() == [0, 1]  # both of the same class: herding
    assert rules.lowest(KAPPA, 2).tolist() == [4, 3]


def test_shortlist_balance_by_hand() -> None:
    # H = {0, 1, 2, 3}. First: every one of them has one class, so Q = 2/3 ties, the first drawn wins.
    # Then v = (9, 0, 0): with 2, shares 9/16 and 7/16; with 3, 9/15 and 6/15: 2 is more even.
    assert rules.shortlist_balance(KAPPA, GAINS, 2).tolist() == [0, 2]
    assert rules.shortlist_balance(KAPPA, GAINS, 3, shortlist=4 / 3).tolist() == [0, 2, 3]
    # The perfectly balanced candidate 4 has too low a credit for the shortlist, unless that is long enough;
    # beside its (1, 1, 1) shares 1 : 1 : 7 are more even than 1 : 8 : 1.
    assert rules.balance_all(GAINS, 2).tolist() == [4, 3]
    assert rules.shortlist_balance(KAPPA, GAINS, 2, shortlist=2.5).tolist() == [4, 3]
    assert rules.shortlist_balance(KAPPA, GAINS, 2, shortlist=1.0).tolist() == rules.topm(KAPPA, 2).tolist()


@pytest.mark.parametrize("seed", range(20))
def test_shortlist_balance_is_the_written_greedy_step(seed: int) -> None:
    rng = generator(seed, "oracle")
    kappa, u, m = rng.uniform(size=12), rng.exponential(size=(12, 4)) * rng.integers(0, 2, (12, 4)), 4
    short = sorted(sorted(range(12), key=lambda k: -kappa[k])[: 2 * m])
    picked, v = [], np.zeros(4)
    for _ in range(m):
        q = {}
        for k in short:
            z = v + u[k]
            q[k] = ((z / z.sum() - 1 / 4) ** 2).sum() if z.sum() > 0 else np.inf
        best = min((k for k in short if k not in picked), key=lambda k: q[k])
        picked.append(best)
        v = v + u[best]
    assert rules.shortlist_balance(kappa, u, m).tolist() == picked


def test_cover_by_hand() -> None:
    # First the largest sum of roots: 1 + 1 + 1 > 2 + 0.7 > 2.5. Then v = (1, 1, 1): (5, 1, 1) gives 2.24 + 2, and
    # (1, 1.5, 1.5) gives 1 + 2 * 1.22 = 3.45: little in a missing class tilts the pool less, but adds less.
    u = np.array([[4.0, 0, 0], [1.0, 1, 1], [0, 0.5, 0.5], [6.25, 0, 0], [4.0, 0.49, 0]])
    assert rules.cover(u, 1).tolist() == [1]
    assert rules.cover(u, 2).tolist() == [1, 3]  # sqrt(7.25) + 2 = 4.69, with 4: sqrt(5) + sqrt(1.49) + 1 = 4.46
    assert rules.cover(np.zeros((4, 3)), 2).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(10))
def test_cover_is_near_the_best_set(seed: int) -> None:
    u = generator(seed, "oracle").exponential(size=(9, 4)) * generator(seed, "mask").integers(0, 2, (9, 4))

    def worth(chosen: typing.Iterable[int]) -> float:
        return float(np.sqrt(u[list(chosen)].sum(0)).sum())

    best = max(worth(subset) for subset in itertools.combinations(range(9), 3))
    picked = rules.cover(u, 3).tolist()
    assert (1 - 1 / math.e) * best <= worth(picked) <= best
    for place, now in enumerate(picked):  # every step is the largest there was
        assert worth(picked[: place + 1]) == max(
            worth([*picked[:place], k]) for k in range(9) if k not in picked[:place]
        ), now


def test_without_gains_the_draw_order_decides() -> None:
    kappa, none = np.zeros(8), np.zeros((8, 3))
    for picked in (rules.shortlist_balance(kappa, none, 3), rules.balance_all(none, 3), rules.topm(kappa, 3)):
        assert picked.tolist() == [0, 1, 2]
    one = none.copy()
    one[5] = [1.0, 0.0, 0.0]
    assert rules.shortlist_balance(kappa, one, 3).tolist() == [5, 0, 1]  # with v set, gainless ones leave it as it is


def test_relabelling_classes_changes_no_choice() -> None:
    for seed in range(50):
        rng = generator(seed, "relabel")
        u = rng.exponential(size=(20, 10)) / 3
        kappa, classes = u.sum(1), rng.permutation(10)
        assert (
            rules.shortlist_balance(kappa, u, 5).tolist() == rules.shortlist_balance(kappa, u[:, classes], 5).tolist()
        )
        assert rules.cover(u, 5).tolist() == rules.cover(u[:, classes], 5).tolist()


def test_softmax_draws_by_credit(fits: Fits) -> None:
    kappa, temperature, draws = np.array([0.1, 0.2, 0.4]), 0.2, 6000
    weights, rng = np.exp(kappa / temperature), generator(1, "softmax")
    seen = Counter(tuple(rules.softmax(kappa, 2, temperature, rng).tolist()) for _ in range(draws))
    pairs, total = list(itertools.permutations(range(3), 2)), weights.sum()
    expected = [draws * weights[a] / total * weights[b] / (total - weights[a]) for a, b in pairs]
    assert fits([seen[pair] for pair in pairs], expected)


@pytest.mark.parametrize("rule", typing.get_args(rules.Rule))
def test_all_places_for_all_candidates_keep_the_draw_order(rule: rules.Rule) -> None:
    rng = generator(1, "untouched")
    before = rng.bit_generator.state
    assert rules.choose(rule, KAPPA, GAINS, 5, rng).tolist() == [0, 1, 2, 3, 4]
    assert rules.choose(rule, KAPPA, GAINS, 9, rng).tolist() == [0, 1, 2, 3, 4]
    assert rng.bit_generator.state == before


def test_choose_returns_draw_order() -> None:
    rng = generator(1)
    assert rules.choose("lowest", KAPPA, None, 2, rng).tolist() == [3, 4]
    assert rules.choose("balance-all", KAPPA, GAINS, 2, rng).tolist() == [3, 4]
    with pytest.raises(ValueError, match="'balance-all' reads gains"):
        rules.choose("balance-all", KAPPA, None, 2, rng)


def test_exploration_gives_its_share_of_places_to_the_others(fits: Fits) -> None:
    rng, draws = generator(1, "explore"), 3000
    sets = [rules.choose("topm", KAPPA, None, 2, rng, exploration=0.5) for _ in range(draws)]
    assert all(0 in picked and len(picked) == 2 for picked in sets)
    assert fits([sum(k in picked for picked in sets) for k in range(1, 5)], [draws / 4] * 4)
    every = [rules.choose("topm", KAPPA, None, 2, rng, exploration=1.0) for _ in range(draws)]
    assert fits([sum(k in picked for picked in every) for k in range(5)], [draws * 2 / 5] * 5)
    # a fifth of two places is no place, three tenths are one
    assert rules.choose("topm", KAPPA, None, 2, rng, exploration=0.2).tolist() == [0, 1]
    assert any(1 not in rules.choose("topm", KAPPA, None, 2, rng, exploration=0.3) for _ in range(20))


@pytest.mark.parametrize(
    ("norm", "possible", "impossible"),
    [
        ("l1", [0.0, 3.0], [-0.1, 3.1, 1e9, np.nan]),
        ("l2", [0.0, math.sqrt(3)], [-0.1, 1.8]),
        ("signed", [-3.0, 3.0], [-3.1, 3.1]),
        ("per_sample", [0.0, 3.0], [-0.1, 3.1]),
        ("positive", [0.0, 3.0], [-0.1, 3.1]),
    ],
)
def test_impossible_credits_are_clipped_and_flagged(
    norm: rules.Norm, possible: list[float], impossible: list[float]
) -> None:
    kappa, flagged = rules.sane(np.array([*possible, *impossible]), None, norm, 3)
    assert flagged.tolist() == [False] * len(possible) + [True] * len(impossible)
    assert kappa[: len(possible)].tolist() == possible
    limit = rules.bound(norm, 3) * 1.00001
    assert (np.abs(kappa) <= limit).all()


def test_impossible_gains_flag_too() -> None:
    gains = np.array([[0.5, -1.0, 1.0], [1.5, 0.0, 0.0], [np.nan] * 3])
    assert rules.sane(np.ones(3), gains, "l1", 3)[1].tolist() == [False, True, True]


@pytest.mark.parametrize("rule", typing.get_args(rules.Rule))
def test_a_flagged_candidate_is_kept_only_for_want_of_others(rule: rules.Rule) -> None:
    flagged = np.array([False, True, False, False, True])
    for seed in range(20):
        kept = rules.choose(rule, KAPPA, GAINS, 2, generator(seed), flagged=flagged, exploration=0.5)
        assert not {1, 4} & set(kept.tolist())
    assert rules.choose(rule, KAPPA, GAINS, 4, generator(1), flagged=flagged).tolist() == [0, 1, 2, 3]
