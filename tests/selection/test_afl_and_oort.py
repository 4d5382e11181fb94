"""afl and oort: values and scores by hand, and who is drawn from what."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from selecting import Build, Fits, Reports, probed

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Roster
from fedloom.core.seeds import generator
from fedloom.selection.oort.selection import scores

ROSTER = Roster(population=8)


def test_afl_evaluates_everybody_once(build: Build, reports: Reports) -> None:
    selection = build("afl")
    state = selection.init(ROSTER)
    probe = probed(selection, state, ROSTER, 2, generator(1))
    assert probe.kind == "evaluate" and probe.candidates == tuple(range(8))
    reported = reports([0, 1, 2, 5], losses=[1.0, 2.0, float("nan"), 0.5], examples=[4, 9, 9, 100])
    state = selection.observe(state, reports([5], losses=[0.25], examples=[100]), reported)
    expected = [2.0, 6.0, np.nan, np.nan, np.nan, 2.5, np.nan, np.nan]  # sqrt(n) times loss, the later report last
    np.testing.assert_array_equal(state.values, expected)
    assert selection.probe(state, ROSTER, 2, generator(1)) is None
    assert build("afl", first_values="largest").probe(selection.init(ROSTER), ROSTER, 2, generator(1)) is None


def test_afl_draws_by_value_among_those_not_dropped(build: Build, reports: Reports, fits: Fits) -> None:
    selection = build("afl", temperature=0.5, uniform_fraction=0.0)
    values = np.arange(8.0) * 2
    state = replace(selection.init(ROSTER), values=values[generator(1).permutation(8)])
    draws, rng = 4000, generator(1, "afl")
    seen = Counter(selection.choose(state, ROSTER, 1, rng)[0] for _ in range(draws))
    kept = np.flatnonzero(state.values >= 12)  # the highest two; six of eight are dropped
    assert set(seen) == set(kept.tolist())
    weights = np.exp(0.5 * state.values[kept])
    assert fits([seen[k] for k in kept.tolist()], draws * weights / weights.sum())


def test_afl_gives_its_share_to_everybody(build: Build, fits: Fits) -> None:
    selection = build("afl", uniform_fraction=0.3)
    state = replace(selection.init(ROSTER), values=np.arange(8.0))
    rng, draws = generator(1, "afl"), 4000
    cohorts = [selection.choose(state, ROSTER, 3, rng) for _ in range(draws)]
    # int(0.7 * 3) = 2 by value: with 6 of 8 dropped those are 6 and 7; the third is anybody else
    assert all(set(cohort[:2]) == {6, 7} for cohort in cohorts)
    assert fits([sum(cohort[2] == k for cohort in cohorts) for k in range(6)], [draws / 6] * 6)


def test_afl_drops_fewer_when_places_would_stay_empty(build: Build) -> None:
    selection = build("afl", uniform_fraction=0.0)
    state = replace(selection.init(ROSTER), values=np.arange(8.0))
    assert set(selection.choose(state, ROSTER, 5, generator(1))) == {3, 4, 5, 6, 7}


def test_afl_counts_the_unknown_as_the_largest(build: Build) -> None:
    selection = build("afl", first_values="largest", uniform_fraction=0.0)
    values = np.full(8, np.nan)
    values[:4] = [1.0, 9.0, 2.0, 3.0]
    state = replace(selection.init(ROSTER), values=values)
    for seed in range(50):
        assert set(selection.choose(state, ROSTER, 5, generator(seed))) == {1, 4, 5, 6, 7}


def test_afl_needs_a_loss(build: Build, reports: Reports) -> None:
    selection = build("afl")
    with pytest.raises(UsageError, match="selection 'afl' needs the metric 'loss'"):
        selection.choose(selection.init(ROSTER), ROSTER, 1, generator(1), reports([1, 2]))


def test_oorts_score_by_hand() -> None:
    utility, seen, t = np.array([10.0, 30.0, 50.0, 1000.0]), np.array([1.0, 2.0, 4.0, 5.0]), 6
    # clip at index floor(0.6 * 4) = 2 of the sorted utilities: 50; low = 9.99, range = 990.01
    expected = [
        (min(u, 50.0) - 9.99) / (1000.0 - 9.99) + math.sqrt(0.1 * math.log(6) / last)
        for u, last in zip(utility, seen, strict=True)
    ]
    np.testing.assert_allclose(scores(utility, seen, t, 0.6), expected)
    np.testing.assert_allclose(scores(np.ones(1), np.ones(1), 1, 0.98), [0.001 / 0.001])  # ln 1 = 0, range 0.001
    np.testing.assert_allclose(scores(np.zeros(2), np.ones(2), 1, 0.98), [0.0, 0.0])  # range is at least 1e-4


def test_oorts_normalisation_runs_over_the_unexplored_too() -> None:
    """One round of the public code: arms registered with their size as reward, two of six played.

    Rewards 40, 90 (played) and 10, 20, 25, 500 (sizes): sorted 10, 20, 25, 40, 90, 500. clip at index int(6 * 0.7) = 4
    is 90, low 9.99, range 490.01. In round 3 the score of an arm last played in round 2 adds sqrt(0.1 ln 3 / 2).
    """
    bonus = math.sqrt(0.1 * math.log(3) / 2)
    expected = [(40 - 9.99) / 490.01 + bonus, (90 - 9.99) / 490.01 + bonus]
    played, sizes = np.array([40.0, 90.0]), np.array([10.0, 20.0, 25.0, 500.0])
    np.testing.assert_allclose(scores(played, np.array([2.0, 2.0]), 3, 0.7, sizes), expected)
    # A reward of 0 does not count, as in the code, which leaves out arms without reward.
    np.testing.assert_allclose(scores(played, np.array([2.0, 2.0]), 3, 0.7, np.append(sizes, 0.0)), expected)


def test_oort_gives_its_rosters_sizes_to_the_normalisation(build: Build, reports: Reports, fits: Fits) -> None:
    selection = build("oort", exploration=0.0, exploration_min=0.0, cut_off=0.0)
    roster = Roster(population=4, sizes=(10, 10, 10, 800))
    state = selection.observe(selection.init(roster), reports([0, 1, 2], [4.0, 8.0, 12.0]))
    value = scores(np.array([40.0, 80.0, 120.0]), np.ones(3), 2, 0.98, np.array([800.0]))
    assert value.max() - value.min() < 0.11  # without the client of 800 examples it would be 1
    rng, draws = generator(1, "sizes"), 4000
    seen = Counter(selection.choose(state, roster, 1, rng)[0] for _ in range(draws))
    assert fits([seen[k] for k in range(3)], draws * value / value.sum())


def test_oort_remembers_what_it_saw(build: Build, reports: Reports) -> None:
    selection = build("oort")
    state = selection.observe(selection.init(ROSTER), reports([3, 1], [2.0, 4.0], [10, 5], [1.5, 0.5]))
    state = selection.observe(state, reports([3], [float("nan")], [10], [2.5]))
    assert state.round == 2
    assert state.utility.tolist() == [0, 20, 0, 20, 0, 0, 0, 0]  # a loss that is no number leaves the last one
    assert state.seen.tolist() == [0, 1, 0, 2, 0, 0, 0, 0]
    assert state.seconds.tolist() == [0, 0.5, 0, 2.5, 0, 0, 0, 0]


def test_oort_explores_the_large_unseen_first(build: Build, reports: Reports, fits: Fits) -> None:
    roster = Roster(population=8, sizes=(80, 1, 2, 3, 4, 30, 20, 10))
    selection = build("oort", exploration_window=1.5, exploration_min=1.0)
    state = selection.observe(selection.init(roster), reports([0], [1.0]))
    rng, draws = generator(1, "explore"), 4000
    cohorts = [selection.choose(state, roster, 2, rng) for _ in range(draws)]
    # epsilon 1: two places, window 3: clients 5, 6, 7, never the seen 0; in proportion to 30 : 20 : 10
    assert {client for cohort in cohorts for client in cohort} == {5, 6, 7}
    first = Counter(cohort[0] for cohort in cohorts)
    assert fits([first[5], first[6], first[7]], [draws / 2, draws / 3, draws / 6])


def test_oorts_exploration_decays_to_its_floor(build: Build, reports: Reports) -> None:
    selection = build("oort", exploration=1.0, exploration_decay=0.5, exploration_min=0.1)
    state = selection.init(Roster(population=30))
    roster, seen = Roster(population=30), range(10)
    exploited = []
    for _ in range(5):
        state = selection.observe(state, reports(list(seen), [1.0 + k for k in seen]))
        cohort = selection.choose(state, roster, 10, generator(1, state.round))
        exploited.append(len(set(cohort) & set(seen)))
    assert exploited == [7, 8, 9, 9, 9]  # epsilon in rounds 2 to 6: 1/4, 1/8, and then the floor


def test_oort_exploits_in_proportion_to_score_above_the_cut(build: Build, reports: Reports, fits: Fits) -> None:
    selection = build("oort", cut_off=0.9)
    losses = [10.0, 9.0, 8.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    state = selection.observe(selection.init(ROSTER), reports(list(range(8)), losses))  # everybody seen: epsilon 0
    value = scores(state.utility, state.seen, 2, 0.98)
    order = np.argsort(-value)
    able = order[value[order] >= 0.9 * value[order[1]]]
    assert able.tolist() == [0, 1, 2]
    rng, draws = generator(1, "exploit"), 4000
    seen = Counter(selection.choose(state, ROSTER, 1, rng)[0] for _ in range(draws))
    assert fits([seen[k] for k in able], draws * value[able] / value[able].sum())


def test_oort_penalises_the_slow_only_when_asked(build: Build, reports: Reports) -> None:
    reported = reports(list(range(4)), [4.0, 3.9, 1.0, 1.0], seconds=[8.0, 1.0, 1.0, 1.0])
    roster = Roster(population=4)
    plain, timed = build("oort", cut_off=1.0), build("oort", cut_off=1.0, preferred_duration_percentile=50.0)
    state = plain.observe(plain.init(roster), reported)
    assert plain.choose(state, roster, 2, generator(1))[:2] in {(0, 1), (1, 0)}
    # T is 1 s (index 2 of the sorted durations): client 0 keeps (1/8)² of its score and falls behind 2 and 3
    value = scores(state.utility, state.seen, 2, 0.98) * np.array([1 / 64, 1, 1, 1])
    assert value[0] < value[2] == value[3]
    for seed in range(20):
        assert 0 not in timed.choose(state, roster, 2, generator(seed))
