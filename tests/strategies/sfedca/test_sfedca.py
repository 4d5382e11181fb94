"""SFedCA in whole runs: two exchanges, exact traffic, no influence of those not chosen, the same bits everywhere."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedloom import api
from fedloom.client.parked import ParkedUpdates
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, UsageError
from fedloom.core.protocols import Roster
from fedloom.core.records import Update
from fedloom.selection.firing_credit.config import Config as CreditConfig
from fedloom.selection.firing_credit.selection import FiringCredit
from fedloom.testing.fleet import run_on_fleet

D, M, CLASSES = 8, 2, 10


def credit(**settings: Any) -> dict[str, Any]:
    """The selection with D candidates."""
    return {"name": "firing_credit", "candidates": D, **settings}


def experiment(**values: Any) -> Experiment:
    spiking = {
        "name": "spiking_classification",
        "partition": {"scheme": "shards", "shards_per_client": 2},
        "model": {"hidden": [8]},
        "time_steps": 4,
    }
    base = {
        "rounds": 3,
        "clients": 20,
        "cohort": M,
        "strategy": "sfedca",
        "selection": credit(),
        "workload": spiking,
        "runtime": {"name": "inline"},
        "evaluation": {"every": 0},
    }
    return Experiment.parse({**base, **values})


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]


@pytest.fixture(scope="module")
def plain() -> api.RunResult:
    return api.run(experiment(), keep=False)


def test_with_as_many_places_as_candidates_it_is_federated_averaging_bit_for_bit() -> None:
    all_chosen = api.run(experiment(cohort=D), keep=False)
    averaging = api.run(experiment(cohort=D, strategy="fedavg", selection="uniform"), keep=False)
    assert all_chosen.summary.model_sha256 == averaging.summary.model_sha256


def test_it_is_averaging_of_the_clients_that_the_credit_selects(plain: api.RunResult) -> None:
    other = api.run(experiment(strategy="fedavg"), keep=False)
    assert [record.cohort for record in other.history] == [record.cohort for record in plain.history]
    assert other.summary.model_sha256 == plain.summary.model_sha256


def test_its_selection_is_the_default_with_four_candidates_for_each_place(plain: api.RunResult) -> None:
    values = experiment().to_dict()
    del values["selection"]
    left_out = Experiment.parse(values)
    assert left_out.selection == CreditConfig() and D == 4 * M
    assert api.run(left_out, keep=False).summary.model_sha256 == plain.summary.model_sha256
    again = Experiment.parse({**values, "selection": {"name": "uniform"}, "strategy": "fedavg"})
    assert again.selection.name == "uniform" and again.fingerprint() != left_out.fingerprint()


@pytest.mark.parametrize("rule", ["shortlist-balance", "topm"])
def test_without_learning_every_credit_is_zero_and_the_draw_decides(rule: str) -> None:
    """With a step too small to move a weight; the chi-square test over rounds is the selection's own."""
    still = experiment(selection=credit(rule=rule)).override(["workload.training.learning_rate=1e-30"])
    for record in api.run(still, keep=False).history:
        assert {reported["credit"] for reported in record.probe.values()} == {0.0}
        assert record.cohort == record.candidates[:M]


def test_traffic_is_exact(plain: api.RunResult) -> None:
    """Downlink d P, uplink m P + d (C + 1), a credit and C gains from each; neuron constants are in neither."""
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    assert sum(array.size for array in plain.arrays.values()) == parameters
    for record in plain.history:
        assert record.traffic.params_down == D * parameters
        assert record.traffic.params_up == M * parameters + D * (CLASSES + 1)
        assert (record.local_trainings, len(record.candidates), len(record.cohort)) == (D, D, M)
        assert set(record.cohort) < set(record.candidates)


def test_rules_that_read_no_gains_cost_one_float_a_candidate() -> None:
    """Uplink m P + d. (Where a workload does not say how many outputs it has, gains are asked for all the same.)"""
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    for rule in ("topm", "softmax", "lowest"):
        run = api.run(experiment(rounds=1, selection=credit(rule=rule)), keep=False)
        assert run.history[0].traffic.params_up == M * parameters + D
    silent = FiringCredit(CreditConfig(rule="topm"))
    roster = Roster(9, [], [])
    probe = silent.probe(silent.init(roster), roster, M, np.random.default_rng(1))
    assert probe is not None and probe.knobs["gain"] is True


def test_rates_may_be_measured_in_passing() -> None:
    """No evaluation pass; training is the same, so with all chosen so is the model."""
    run = api.run(experiment(cohort=D, selection=credit(measurement="training")), keep=False)
    averaging = api.run(experiment(cohort=D, strategy="fedavg", selection="uniform"), keep=False)
    assert run.summary.model_sha256 == averaging.summary.model_sha256
    credits = [reported["credit"] for record in run.history for reported in record.probe.values()]
    assert len(credits) == 3 * D and max(credits) > 0 and min(credits) >= 0


def test_models_of_those_not_chosen_have_no_influence(plain: api.RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every other candidate's model replaced by NaN the result is the same."""
    chosen = {record.round: set(record.cohort) for record in plain.history}
    put, spoilt = ParkedUpdates.put, []

    def spoil(self: ParkedUpdates, run_id: str, round: int, client: int, update: Update) -> None:
        if client not in chosen[round]:
            spoilt.append(client)
            nan = {g: {n: np.full_like(a, np.nan) for n, a in arrays.items()} for g, arrays in update.groups.items()}
            update = replace(update, groups=nan)
        put(self, run_id, round, client, update)

    monkeypatch.setattr(ParkedUpdates, "put", spoil)
    assert api.run(experiment(), keep=False).summary.model_sha256 == plain.summary.model_sha256
    assert len(spoilt) == 3 * (D - M)


def test_a_model_that_was_lost_between_the_exchanges_is_trained_again(
    plain: api.RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = []

    def forget(self: ParkedUpdates, run_id: str, round: int, client: int) -> None:
        lost.append((round, client))

    monkeypatch.setattr(ParkedUpdates, "take", forget)
    again = api.run(experiment(), keep=False)
    assert again.summary.model_sha256 == plain.summary.model_sha256
    assert len(lost) == 3 * M


def test_a_worker_killed_between_the_exchanges_changes_nothing(
    plain: api.RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its candidates' models are gone with it; those that were chosen are trained again elsewhere, the same bits."""
    choose, killed, rounds = FiringCredit.choose, list[int](), list[int]()

    def kill_one(self: FiringCredit, *arguments: Any) -> tuple[int, ...]:
        rounds.append(len(rounds) + 1)
        if rounds[-1] == 2:
            workers = [worker for nursery in children(os.getpid()) for worker in children(nursery)]
            killed.append(workers[0])
            os.kill(workers[0], signal.SIGKILL)
        return choose(self, *arguments)

    monkeypatch.setattr(FiringCredit, "choose", kill_one)
    workers = experiment(runtime={"name": "process", "workers": 2})
    again = api.run(workers, keep=False)
    assert killed and again.summary.model_sha256 == plain.summary.model_sha256
    assert [record.cohort for record in again.history] == [record.cohort for record in plain.history]
    assert again.summary.failures == 0


def test_a_candidate_that_fails_is_missing_and_the_rest_continue() -> None:
    """m may then exceed those who answered: all of them are averaged."""
    lost = experiment(rounds=1, cohort=2, selection=credit(candidates=2), round={"quorum_fraction": 0.5}, clients=2)
    fail, failed = ParkedUpdates.put, []

    def put(self: ParkedUpdates, run_id: str, round: int, client: int, update: Update) -> None:
        if client == 1:
            failed.append(client)
            raise RuntimeError("no room for the model")
        fail(self, run_id, round, client, update)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ParkedUpdates, "put", put)
        patch.setenv("FEDLOOM_DEBUG", "0")
        run = api.run(lost, keep=False)
    assert failed and [failure.client for failure in run.history[0].failures] == [1]
    assert run.history[0].cohort == [0]


def test_nodes_without_shared_memory_give_the_same_bits(plain: api.RunResult) -> None:
    """As on machines of their own: payloads are streamed, each node keeps the models of the candidates it trained."""
    outcome = run_on_fleet(experiment(), workers=3, shared_memory=False)
    assert outcome.error is None
    assert [record.cohort for record in outcome.history] == [record.cohort for record in plain.history]
    assert outcome.summary.model_sha256 == plain.summary.model_sha256
    assert sum(len(record.nodes) for record in outcome.history) > len(outcome.history)


def test_processes_give_the_same_bits(plain: api.RunResult) -> None:
    workers = experiment(runtime={"name": "process", "workers": 2})
    assert api.run(workers, keep=False).summary.model_sha256 == plain.summary.model_sha256


def test_credits_are_reported_and_decide(plain: api.RunResult) -> None:
    """With `topm` the chosen are those with the largest credits."""
    history = api.run(experiment(selection=credit(rule="topm")), keep=False).history
    for record in history:
        credits = {int(client): reported["credit"] for client, reported in record.probe.items()}
        assert credits.keys() == set(record.candidates)
        worst = min(credits[client] for client in record.cohort)
        assert all(credits[client] <= worst for client in set(record.candidates) - set(record.cohort))
    assert all(record.info["flagged_credits"] == 0 for record in plain.history)


def test_more_places_than_candidates_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"selection\.candidates: 8 candidates for a cohort of 9"):
        api.run(experiment(cohort=9), keep=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"select": 5}, r"strategy\.select: 5, .*Write cohort = 5 .*selection\.candidates for those that train"),
        ({"rule": "topm"}, r"strategy\.rule: 'topm', .*Write selection\.rule = 'topm'"),
        ({"exploration": 0.1, "norm": "l2"}, r"strategy\.norm: 'l2', .*Write selection\.norm = 'l2'"),
        ({"nrom": "l2"}, r"strategy\.nrom: unknown setting"),
    ],
)
def test_settings_of_the_selection_are_refused_here_with_their_place(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        experiment(strategy={"name": "sfedca", **settings})


def test_another_selection_is_refused_before_the_run(tmp_path: Path) -> None:
    for name in ("uniform", "data_size", "predicted_credit"):
        with pytest.raises(ConfigError, match=rf"selection\.name: '{name}' with strategy 'sfedca'.*candidate_draw"):
            api.run(experiment(selection=name), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_workload_without_spikes_is_refused() -> None:
    with pytest.raises(UsageError, match=r"needs a workload with firing_rates .*; use a spiking workload"):
        api.run(experiment(workload="image_classification"), keep=False)
