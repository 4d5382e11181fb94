"""Selection by predicted credit: what is remembered, previewed, balanced; what a client may claim."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from selecting import Build, Examples, Reports, probed

from fedloom import api
from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, UnsupportedFeature, UsageError
from fedloom.core.plugins import build_measure
from fedloom.core.protocols import ExtraReport, Roster, Selection, Shard
from fedloom.core.records import MODEL, Array, Arrays, Exchange, Job, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection.predicted_credit.selection import Memory
from fedloom.server.rounds.cohort import with_extra_report

ROSTER = Roster(population=6)
GAINS = {0: [0.9, -0.9, 0.0], 1: [0.8, -0.8, 0.0], 2: [-0.7, 0.7, 0.0], 3: [-0.6, 0.0, 0.6], 4: [0.0] * 3, 5: [0.0] * 3}


def heard(
    selection: Selection[Memory],
    reports: Reports,
    *clients: int,
    roster: Roster = ROSTER,
    examples: Mapping[int, int] | None = None,
) -> Memory:
    """The state once these clients, one after the other, have told their gains."""
    state = selection.init(roster)
    for client in clients:
        reported = reports([client], gain=[GAINS[client]], examples=None if examples is None else [examples[client]])
        state = selection.observe(state, reported)
    return state


def test_the_balanced_are_chosen_by_hand(build: Build, reports: Reports) -> None:
    """Of gains 0.9, 0.8 in class 0, 0.7 in class 1, 0.6 in class 2: three of them most even are 0.8 : 0.7 : 0.6."""
    selection = build("predicted_credit", candidates=6, decay=1.0, rule="balance-all")
    state = heard(selection, reports, 4, 5, 0, 1, 2, 3)
    for seed in range(10):
        chosen = selection.choose(state, ROSTER, 3, generator(seed))
        # the first place ties among pure candidates and goes to the first drawn: 0 or 1, then 2 and 3
        assert set(chosen) in ({0, 2, 3}, {1, 2, 3})
    # with 20 examples client 1's gain is 16 : 7 : 6 beside 9 : 7 : 6, so 0 is taken unless 1 is drawn first
    heavy = heard(selection, reports, 4, 5, 0, 1, 2, 3, examples={0: 10, 1: 20, 2: 10, 3: 10, 4: 10, 5: 10})
    first_drawn = [selection.choose(heavy, ROSTER, 3, generator(seed)) for seed in range(20)]
    assert all(set(chosen) <= {0, 1, 2, 3} for chosen in first_drawn)


def test_the_shortlist_comes_before_the_balance(build: Build, reports: Reports) -> None:
    selection = build("predicted_credit", candidates=6, rule="shortlist-balance", shortlist=1.0, decay=1.0)
    state = heard(selection, reports, 4, 5, 0, 1, 2, 3)
    assert set(selection.choose(state, ROSTER, 2, generator(1))) == {0, 1}


def test_the_unknown_are_chosen_first_and_then_those_selected_longest_ago(build: Build, reports: Reports) -> None:
    selection = build("predicted_credit", candidates=3)
    state = heard(selection, reports, 0, 1, 2, 3)
    assert set(selection.choose(state, ROSTER, 2, generator(1))) == {4, 5}
    state = selection.observe(state, reports([4, 5], gain=[GAINS[4], GAINS[5]]))
    for seed in range(5):  # candidates are 0, 1, 2: 0 and 1 are both of class 0, so 2 is always in
        chosen = selection.choose(state, ROSTER, 2, generator(seed))
        assert set(chosen) < {0, 1, 2} and 2 in chosen
    counts = Counter(
        client
        for seed in range(300)
        for client in build("predicted_credit", candidates=3, candidate_draw="uniform").choose(
            state, ROSTER, 3, generator(seed)
        )
    )
    assert min(counts.values()) > 110 and len(counts) == 6


def test_who_does_not_answer_goes_to_the_end_and_counts_as_average(build: Build, reports: Reports) -> None:
    selection = build("predicted_credit", candidates=2)
    state = heard(selection, reports, 0, 1, 2, 3)
    state = selection.missed(selection.observe(state, []), [4, 5])
    assert set(selection.choose(state, ROSTER, 1, generator(1))) <= {0, 1}
    everyone = build("predicted_credit", candidates=6, decay=1.0)
    # mean gains of 0..3 (1 example each): (1.7, 0.7, 0.6) / 4, more even than any single class, so first taken
    assert set(everyone.choose(state, ROSTER, 1, generator(1))) <= {4, 5}


def test_memory_ends_and_fades(build: Build, reports: Reports) -> None:
    short = build("predicted_credit", candidates=6, memory=2)
    state = heard(short, reports, 0, 1, 2)  # round 4 is chosen for: 0 has told about round 1, three rounds ago
    assert short.report(state)["known_clients"] == 2
    fading = build("predicted_credit", candidates=3, decay=0.5, candidate_draw="stalest")
    roster = Roster(population=3)
    state = fading.init(roster)
    for client in (0, 2, 1):  # ages 3, 2 and 1: gains 0.9 / 8 in class 0, 0.7 / 4 in class 1, 0.8 / 2 in class 0
        state = fading.observe(state, reports([client], gain=[GAINS[client]]))
    # whoever comes first, 2 is the only one of its class; beside it 0.11 : 0.175 is more even than 0.4 : 0.175
    picks = {tuple(sorted(fading.choose(state, roster, 2, generator(seed)))) for seed in range(20)}
    assert picks <= {(0, 2), (1, 2)}


def test_only_the_unknown_are_previewed(build: Build, reports: Reports) -> None:
    selection = build("predicted_credit", candidates=6, preview=1, decay=1.0)
    state = heard(selection, reports, 0, 1, 2, 3)
    probe = probed(selection, state, ROSTER, 2, generator(1))
    assert (probe.kind, probe.measure, len(probe.candidates)) == ("measure", "predicted_credit", 1)
    assert set(probe.candidates) < {4, 5}
    reported = reports(probe.candidates, gain=[[0.0, 0.0, 0.9]])
    chosen = selection.choose(state, ROSTER, 3, generator(1), reported)
    assert probe.candidates[0] in chosen and 2 in chosen  # one of each class
    known = selection.observe(heard(selection, reports, 0, 1, 2, 3), [], reports([4, 5], gain=[GAINS[4], GAINS[5]]))
    assert selection.probe(known, ROSTER, 2, generator(1)) is None


def test_with_no_memory_and_a_preview_of_all_it_is_a_fresh_forecast(build: Build, reports: Reports) -> None:
    selection = build("predicted_credit", candidates=4, preview=4, memory=0, candidate_draw="uniform")
    state = heard(selection, reports, *range(6))
    probe = probed(selection, state, ROSTER, 2, generator(3))
    assert len(probe.candidates) == 4
    reported = reports(probe.candidates, gain=[GAINS[client] for client in probe.candidates])
    assert set(selection.choose(state, ROSTER, 2, generator(4), reported)) <= set(probe.candidates)


@pytest.mark.parametrize("claim", [[9.0, 0.0, 0.0], [float("nan")] * 3, [0.1], "all", None])
def test_gains_that_cannot_be_are_not_believed(build: Build, reports: Reports, claim: object) -> None:
    selection = build("predicted_credit", candidates=6)
    state = heard(selection, reports, 0, 1, 2, 3)
    state = selection.observe(state, reports([4, 5], gain=[claim, GAINS[5]]))
    assert selection.report(state) == {"known_clients": 5, "flagged_credits": 1}
    assert state.flagged == {"4": 1} and state.asked[4] == state.round


def test_preview_of_what_only_training_tells_is_refused(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"selection\.preview: 3, but credit = .change. is known only"):
        build("predicted_credit", credit="change", preview=3)


def test_the_measure_is_the_error_of_the_output() -> None:
    """Two images of classes 0 and 1; outputs (ln 3, 0) for both: softmax (3/4, 1/4), error ((3/2 - 1) / 2, ...)."""

    class Fixed:
        def class_errors(self, arrays: Arrays, shard: Shard, rng: np.random.Generator) -> Array:
            softmax, labels = np.array([[0.75, 0.25]] * 2), np.eye(2)
            return np.asarray((labels - softmax).mean(axis=0))

    measure = build_measure("predicted_credit")
    nothing = Update(num_examples=2)
    assert measure(Fixed(), Record({MODEL: {}}), nothing, Examples(2), generator(1), {}) == {"gain": [-0.25, 0.25]}
    with pytest.raises(
        UsageError,
        match=r"needs a workload with class_errors.*but object has none; use image_classification or spiking",
    ):
        measure(object(), Record({MODEL: {}}), nothing, Examples(2), generator(1), {})


def experiment(workload: str = "image_classification", **values: Any) -> Experiment:
    settings = {"name": workload, "model": {"name": "mlp", "hidden": [8]}, "partition": {"scheme": "shards"}}
    base = {"rounds": 4, "clients": 12, "cohort": 3, "strategy": "fedavg", "workload": settings}
    return Experiment.parse({**base, "evaluation": {"every": 0}, "runtime": {"name": "inline"}, **values})


def test_traffic_is_that_of_random_selection_and_c_floats_a_client() -> None:
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    for workload in ("image_classification", "spiking_classification"):
        run = api.run(experiment(workload, selection={"name": "predicted_credit"}), keep=False)
        for record in run.history:
            assert record.traffic.params_down == 3 * parameters
            assert record.traffic.params_up == 3 * (parameters + 10)
            assert (record.local_trainings, record.candidates, len(record.cohort)) == (3, [], 3)
        assert sorted(client for record in run.history for client in record.cohort) == list(range(12))
        assert [record.info["known_clients"] for record in run.history] == [3, 6, 9, 12]


def test_a_preview_costs_a_downlink_and_c_floats_and_no_training() -> None:
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    previewing = {"name": "predicted_credit", "candidates": 6, "preview": 6, "candidate_draw": "stalest"}
    first = api.run(experiment("spiking_classification", selection=previewing), keep=False).history[0]
    assert first.traffic.params_down == (6 + 3) * parameters
    assert first.traffic.params_up == 3 * (parameters + 10) + 6 * 10
    assert (first.local_trainings, len(first.candidates)) == (3, 6)
    assert set(first.cohort) < set(first.candidates)


def test_the_change_of_firing_rates_can_be_remembered_too() -> None:
    run = api.run(
        experiment("spiking_classification", selection={"name": "predicted_credit", "credit": "change"}), keep=False
    )
    parameters = 64 * 8 + 8 + 8 * 10 + 10
    assert run.history[0].traffic.params_up == 3 * (parameters + 11)  # the credit comes with its gains
    assert run.history[3].info["known_clients"] == 12


def test_what_is_reported_does_not_change_training() -> None:
    """A cohort of everybody: the same model as uniform selection up to the order of sums."""
    plain = api.run(experiment(cohort=12), keep=False)
    reported = api.run(experiment(cohort=12, selection={"name": "predicted_credit"}), keep=False)
    for name, array in plain.arrays.items():
        np.testing.assert_allclose(reported.arrays[name], array, atol=1e-5)


def test_a_strategy_that_measures_for_itself_is_refused() -> None:
    own = Exchange(jobs=(), inputs={}, measure="firing_credit")
    with pytest.raises(UnsupportedFeature, match="already makes them report 'firing_credit'"):
        with_extra_report(own, ExtraReport(measure="predicted_credit"))


def test_class_errors_are_the_gradient_of_the_loss() -> None:
    """The bias of a linear model gets the mean output error as its gradient: one full-batch step shows it."""
    settings = {
        "name": "image_classification",
        "model": {"name": "mlp", "hidden": []},
        "training": {"learning_rate": 0.5, "batch_size": 2000, "epochs": 1},
    }
    values = experiment(workload="image_classification").to_dict() | {"workload": settings}
    made = Experiment.parse(values)
    work = registry.part("workloads", "image_classification", "workload").build_workload(made.workload, made)
    model, shard = work.init(generator(1, "init")), work.shard(2)
    bias = next(name for name in model.groups[MODEL] if name.endswith("bias"))
    start = model.groups[MODEL][bias].astype(np.float64)
    after = (
        work.train(Job(round=1, client=2), {MODEL: model}, shard, None, generator(1, "t"))
        .groups[MODEL][bias]
        .astype(np.float64)
    )
    error = -work.class_errors(model.groups[MODEL], shard, generator(1))
    np.testing.assert_allclose((start - after) / 0.5, error, atol=2e-6)
    assert abs(error.sum()) < 1e-12 and np.abs(error).max() > 0.01
