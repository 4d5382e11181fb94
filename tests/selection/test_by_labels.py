"""fed_cbs and label_oracle: class balance with known label counts."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from selecting import Build, Fits, Reports

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Roster
from fedloom.core.seeds import generator

LABELS = ((8, 0, 0), (6, 2, 0), (0, 9, 0), (0, 0, 4), (1, 1, 2))
ROSTER = Roster(population=5, sizes=tuple(map(sum, LABELS)), label_counts=LABELS)


def qcid(members: Sequence[int]) -> float:
    """Fed-CBS in its form with inner products: sum_ij n_i n_j q_i.q_j / n² - 1/C."""
    counts = np.array([LABELS[k] for k in members], float)
    return float((counts @ counts.T).sum() / counts.sum() ** 2 - 1 / 3)


@pytest.mark.parametrize("round", [0, 4])
def test_fed_cbs_draws_by_the_written_weights(build: Build, fits: Fits, round: int) -> None:
    selection = build("fed_cbs", first_exponent=1.0, last_exponent=2.0, exploration=3.0)
    times = np.array([0.0, 3.0, 1.0, 2.0, 0.0])
    state = replace(selection.init(ROSTER), round=round, times=times)
    first = np.array([1 / qcid([k]) for k in range(5)])
    first += 3.0 * np.sqrt(3 * np.log(round + 1) / (2 * (times + 1)))
    pairs, expected = list(itertools.permutations(range(5), 2)), []
    for a, b in pairs:
        second = {k: qcid([a, k]) ** -2.0 for k in range(5) if k != a}
        expected.append(first[a] / first.sum() * second[b] / sum(second.values()))
    rng, draws = generator(1, "cbs", round), 6000
    seen = Counter(selection.choose(state, ROSTER, 2, rng) for _ in range(draws))
    assert fits([seen[pair] for pair in pairs], draws * np.array(expected))


def test_fed_cbs_counts_how_often_each_was_chosen(build: Build, reports: Reports) -> None:
    selection = build("fed_cbs")
    state = selection.observe(selection.observe(selection.init(ROSTER), reports([1, 3])), reports([3]))
    assert state.round == 2 and state.times.tolist() == [0, 1, 0, 2, 0]


@pytest.mark.parametrize("name", ["fed_cbs", "label_oracle"])
def test_unknown_labels_are_reported_before_round_1(build: Build, name: str) -> None:
    with pytest.raises(UsageError, match=rf"'{name}' needs the label counts .* for 0 of 5 clients"):
        build(name).init(replace(ROSTER, label_counts=()))


@pytest.mark.parametrize("objective", ["kl", "qcid"])
def test_the_oracle_is_greedy_on_its_own_draw(build: Build, objective: str) -> None:
    selection = build("label_oracle", candidates=4, objective=objective)

    def distance(members: Sequence[int]) -> float:
        shares = np.array([LABELS[k] for k in members], float).sum(0)
        shares = shares / shares.sum()
        if objective == "qcid":
            return qcid(members)
        return float(sum(p * np.log(3 * p) for p in shares if p > 0))

    for seed in range(20):
        drawn = generator(seed).choice(5, 4, replace=False).tolist()
        picked: list[int] = []
        for _ in range(2):
            picked.append(min((k for k in drawn if k not in picked), key=lambda k: distance([*picked, k])))
        expected = tuple(k for k in drawn if k in picked)
        assert selection.choose(selection.init(ROSTER), ROSTER, 2, generator(seed)) == expected


def test_the_oracles_pools_are_more_even_than_random_ones(build: Build) -> None:
    rng = generator(1, "labels")
    labels = np.concatenate([rng.multinomial(30, rng.dirichlet([0.2] * 10), size=1) for _ in range(50)])
    roster = Roster(population=50, label_counts=labels.tolist())
    oracle, uniform = build("label_oracle"), build("uniform")

    def kl(cohort: Sequence[int]) -> float:
        shares = labels[list(cohort)].sum(0) / labels[list(cohort)].sum()
        return float(sum(p * np.log(10 * p) for p in shares if p > 0))

    mine = [kl(oracle.choose(oracle.init(roster), roster, 5, generator(k))) for k in range(30)]
    theirs = [kl(uniform.choose(uniform.init(roster), roster, 5, generator(k))) for k in range(30)]
    assert np.mean(mine) < 0.5 * np.mean(theirs)
