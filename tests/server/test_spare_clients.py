"""Rounds that ask more clients than they need: from the start, or in place of those that are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, QuorumNotReached, UnsupportedFeature
from fedloom.core.events import ClientsDone, RoundStarted
from fedloom.core.protocols import Roster
from fedloom.core.seeds import generator
from fedloom.selection.uniform.config import Config
from fedloom.selection.uniform.selection import build_selection
from fedloom.testing.fleet import EventLog, run_on_fleet

Make = Callable[..., Experiment]


def spared(linear: Make, **round: Any) -> Experiment:
    """Twelve clients, four needed in each of three rounds, in groups of one."""
    workload = round.pop("workload", {})
    return linear(rounds=3, clients=12, cohort=4, round={"group_size": 1, **round}, workload=workload)


def test_a_reserve_nobody_needs_changes_nothing_but_who_is_drawn(linear: Make) -> None:
    outcome = run_on_fleet(spared(linear, reserve_fraction=0.5))
    assert outcome.error is None
    for record in outcome.history:
        assert len(record.cohort) == 4 and not record.unneeded and not record.failures
        assert sorted(map(int, record.client_seconds)) == sorted(record.cohort)
    again = run_on_fleet(spared(linear, reserve_fraction=0.5), workers=1)
    assert again.summary.model_sha256 == outcome.summary.model_sha256, "the bits do not depend on the workers"


def test_each_lost_client_is_replaced_by_one_in_reserve(linear: Make) -> None:
    lost = (0, 1, 2, 3, 4)
    outcome = run_on_fleet(spared(linear, reserve_fraction=2.0, workload={"fail_clients": lost}))
    assert outcome.error is None
    for record in outcome.history:
        answered = set(map(int, record.client_seconds))
        failed = {failure.client for failure in record.failures}
        assert len(answered) == 4 and not answered & set(lost), "four good answers in every round"
        assert failed <= set(lost) and answered | failed == set(record.cohort)
        assert len(record.cohort) == 4 + len(failed), "one more was asked for each that was lost"
    assert any(record.failures for record in outcome.history)


def test_a_reserve_that_is_used_up_leaves_the_quorum_to_decide(linear: Make) -> None:
    everybody = tuple(range(12))
    outcome = run_on_fleet(
        spared(linear, reserve_fraction=0.5, quorum_fraction=0.5, workload={"fail_clients": everybody})
    )
    assert isinstance(outcome.error, QuorumNotReached)
    assert "needs updates of 2 of 4 clients, but 5 are missing" in str(outcome.error)


def test_oversampled_rounds_close_with_enough_answers_and_list_the_rest(linear: Make) -> None:
    listener = EventLog()
    experiment = spared(linear, oversample_fraction=0.5, workload={"sleep_s": 0.02})
    outcome = run_on_fleet(experiment, workers=2, sinks=[listener])
    assert outcome.error is None
    assert [event.cohort for event in listener.of(RoundStarted)] == [6, 6, 6]
    assert {event.cohort for event in listener.of(ClientsDone)} == {4}
    for record in outcome.history:
        answered = set(map(int, record.client_seconds))
        assert len(record.cohort) == 6 and len(answered) >= 4
        assert answered | set(record.unneeded) == set(record.cohort) and not answered & set(record.unneeded)


def test_an_oversampled_round_has_its_four_answers_when_two_of_six_fail(linear: Make) -> None:
    rng = generator(1, "selection", 1)
    selection, roster = build_selection(Config(name="uniform")), Roster(population=12)
    drawn = selection.choose(selection.init(roster), roster, 6, rng)
    experiment = spared(linear, oversample_fraction=0.5, workload={"fail_clients": drawn[:2]}).override(["rounds=1"])
    outcome = run_on_fleet(experiment)
    assert outcome.error is None
    (record,) = outcome.history
    without = [failure.client for failure in record.failures] + record.unneeded  # a failure may come after the fourth
    assert sorted(without) == sorted(drawn[:2])
    assert sorted(map(int, record.client_seconds)) == sorted(drawn[2:])


def test_selections_that_measure_candidates_leave_no_spares(linear: Make) -> None:
    values = spared(linear, reserve_fraction=0.5).to_dict()
    values["selection"] = {"name": "power_of_choice"}
    try:
        experiment = Experiment.parse(values)
    except ConfigError:
        pytest.skip("no selection of this name")
    outcome = run_on_fleet(experiment)
    assert isinstance(outcome.error, UnsupportedFeature) and "rules out spare clients" in str(outcome.error)


@pytest.mark.parametrize("setting", ["oversample_fraction", "reserve_fraction"])
def test_negative_shares_are_refused(linear: Make, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"round.{setting}"):
        spared(linear, **{setting: -0.1})


def test_two_updates_in_a_cohort_of_one_weigh_as_their_examples(linear: Make) -> None:
    """An extra client in the group of the only one comes with it: the mean is that of a cohort of two."""
    settings = {"rounds": 2, "clients": 6}
    one = linear(**settings, cohort=1, round={"group_size": 2, "oversample_fraction": 1.0})
    two = linear(**settings, cohort=2, round={"group_size": 2})
    assert one.weighs_by_examples and two.weighs_by_examples
    assert not linear(**settings, cohort=1).weighs_by_examples, "the only update is the mean, bit for bit"
    assert not linear(**settings, cohort=1, round={"oversample_fraction": 1.0}).weighs_by_examples
    results = [api.run(each, keep=False) for each in (one, two)]
    assert [len(record.cohort) for record in results[0].history] == [2, 2]
    assert results[0].summary.model_sha256 == results[1].summary.model_sha256
