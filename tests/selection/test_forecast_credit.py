"""Selection by forecast credit: what candidates report, who is chosen, what is remembered, what it costs."""

from dataclasses import dataclass

import numpy as np
import pytest

from fedloom.core import registry
from fedloom.core.errors import ConfigError, UsageError
from fedloom.core.protocols import Roster
from fedloom.core.records import MODEL, Record, Update
from fedloom.core.seeds import generator

ROSTER = Roster(population=6)
GAINS = {
    9: [0.8, -0.1, -0.1],  # credits 1.0, 0.9, 0.8, 0.7, 0.3
    4: [0.7, -0.1, -0.1],
    7: [-0.1, 0.6, -0.1],
    1: [-0.1, -0.1, 0.5],
    3: [0.1, 0.1, 0.1],
}
EVERYONE = Roster(population=10)


@dataclass
class Told:
    """A workload whose class errors are the model's array, so that a test sees where it comes from."""

    def class_errors(self, arrays, shard, rng):
        return np.asarray(arrays["w"])


def measured(workload):
    measure = registry.part("selection", "forecast_credit", "measure").build_measure()
    model = Record({MODEL: {"w": np.array([0.5, -0.25])}})
    return measure(workload, model, Update(num_examples=2), None, generator(1), {})


def test_the_measure_asks_the_workload_about_the_global_model() -> None:
    assert measured(Told()) == {"gain": [0.5, -0.25]}
    with pytest.raises(UsageError, match=r"'object' has no class_errors\. Use spiking_classification or image_class"):
        measured(object())


def test_candidates_are_uniform_selections_and_do_not_train(build) -> None:
    selection, uniform = build("forecast_credit"), build("uniform")
    probe = selection.probe(selection.init(EVERYONE), EVERYONE, 2, generator(4))
    assert (probe.kind, probe.measure) == ("measure", "forecast_credit")
    assert probe.candidates == uniform.choose(uniform.init(EVERYONE), EVERYONE, 8, generator(4))


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("shortlist-balance", (9, 7)),  # of the four highest: 8 and 6 in two classes is nearer uniform than 8 and 5
        ("topm", (9, 4)),
        ("lowest", (1, 3)),
    ],
)
def test_rules_are_those_of_firing_credit(build, reports, rule: str, kept: tuple[int, ...]) -> None:
    selection = build("forecast_credit", rule=rule)
    told = reports(list(GAINS), gain=list(GAINS.values()))
    assert selection.choose(selection.init(EVERYONE), EVERYONE, 2, generator(1), told) == kept


def test_the_whole_pool_is_balanced_where_credits_do_not_count(build, reports) -> None:
    told = reports(list(GAINS), gain=list(GAINS.values()))
    selection = build("forecast_credit", rule="balance-all")
    pools = {k: np.ones(3) + 10 * np.maximum(gain, 0) for k, gain in GAINS.items() if k != 3}  # client 3 is uniform
    qcid = {k: ((z / z.sum() - 1 / 3) ** 2).sum() for k, z in pools.items()}
    assert set(selection.choose(selection.init(EVERYONE), EVERYONE, 2, generator(1), told)) == {
        3,
        min(qcid, key=qcid.get),
    }


def test_a_report_serves_as_long_as_it_is_remembered(build, reports) -> None:
    selection = build("forecast_credit", rule="topm", remember_rounds=2, candidates=6, asked=2)
    state = selection.init(EVERYONE)
    asked = []
    for round in range(1, 7):
        probe = selection.probe(state, EVERYONE, 2, generator(1, round))
        asked.append(set(probe.candidates) if probe else set())
        told = reports(probe.candidates, gain=[[0.1 * client, 0.0] for client in probe.candidates]) if probe else []
        known = set.union(*asked[-3:])  # this round's and those of the two before
        chosen = selection.choose(state, EVERYONE, 2, generator(2, round), told)
        assert set(chosen) == set(sorted(known)[-2:])
        state = selection.observe(state, reports(chosen), told)
    for round, now in enumerate(asked):
        assert len(now) == 2 and not now & set().union(*asked[max(0, round - 2) : round])


def test_candidates_are_those_asked_and_some_of_those_known(build, reports) -> None:
    selection = build("forecast_credit", rule="topm", remember_rounds=9, asked=1, candidates=4)
    known = reports(range(8), gain=[[0.1 * client, 0.0] for client in range(8)])
    state = selection.observe(selection.init(EVERYONE), [], known)
    fresh = reports([9], gain=[[0.95, 0.0]])
    assert len(selection.probe(state, EVERYONE, 2, generator(1)).candidates) == 1
    seen = [selection.choose(state, EVERYONE, 4, generator(1, round), fresh) for round in range(200)]
    assert all(chosen[0] == 9 and len(chosen) == 4 for chosen in seen)  # as many places as candidates: all are kept
    assert {client for chosen in seen for client in chosen} == {*range(8), 9}
    best = [selection.choose(state, EVERYONE, 2, generator(1, round), fresh) for round in range(200)]
    # the best of three drawn from eight is client 7 with probability 3 / 8
    assert abs(np.mean([7 in chosen for chosen in best]) - 3 / 8) < 4 * np.sqrt(3 / 8 * 5 / 8 / 200)


def test_enough_are_asked_for_a_cohort(build) -> None:
    selection = build("forecast_credit", remember_rounds=9, asked=1)
    assert len(selection.probe(selection.init(EVERYONE), EVERYONE, 3, generator(1)).candidates) == 3


def test_settings_of_memory_need_memory(build) -> None:
    with pytest.raises(ConfigError, match=r"asked = 2.*remember_rounds = 0\. Set remember_rounds"):
        build("forecast_credit", asked=2)
    with pytest.raises(ConfigError, match=r"decay = 0\.5"):
        build("forecast_credit", decay=0.5)


def test_nobody_is_asked_while_everybody_is_known(build, reports) -> None:
    selection = build("forecast_credit", remember_rounds=1)
    told = reports(range(6), gain=[[0.1 * client, 0.2] for client in range(6)])
    state = selection.observe(selection.init(ROSTER), [], told)
    assert selection.probe(state, ROSTER, 2, generator(1)) is None
    assert len(set(selection.choose(state, ROSTER, 2, generator(1)))) == 2
    later = selection.observe(state, [], [])
    assert len(selection.probe(later, ROSTER, 2, generator(1)).candidates) == 6
    assert selection.report(later)["remembered"] == 6


def test_memory_fades(build, reports) -> None:
    selection = build("forecast_credit", rule="topm", remember_rounds=9, decay=0.5)
    state = selection.observe(selection.init(ROSTER), [], reports([0, 1], gain=[[0.9, 0.0], [0.5, 0.0]]))
    fresh = reports([2, 3], gain=[[0.4, 0.0], [0.3, 0.0]])
    # after one round 0.9 counts 0.45 and 0.5 counts 0.25
    assert set(selection.choose(state, ROSTER, 2, generator(1), fresh)) == {0, 2}
    assert set(selection.choose(state, ROSTER, 3, generator(1), fresh)) == {0, 2, 3}
    lasting = build("forecast_credit", rule="topm", remember_rounds=9)
    assert set(lasting.choose(state, ROSTER, 2, generator(1), fresh)) == {0, 1}


@pytest.mark.parametrize("claim", [[1e9, 0.0, 0.0], [float("nan")] * 3, "all", None, [0.5]])
def test_who_claims_what_cannot_be_comes_last_and_is_counted(build, reports, claim) -> None:
    selection = build("forecast_credit", rule="topm", remember_rounds=5)
    told = reports(list(GAINS), gain=[claim, *list(GAINS.values())[1:]])
    state = selection.init(EVERYONE)
    assert 9 not in selection.choose(state, EVERYONE, 4, generator(1), told)
    after = selection.observe(state, [], told)
    assert after.flagged == {"9": 1} and 9 not in after.clients
    assert selection.report(after) == {"remembered": 4, "flagged_credits": 1}
