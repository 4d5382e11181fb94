"""The rounds of the median ensemble: what is kept, published, asked, and told."""

from typing import Any

import numpy as np
import pytest

from fedloom.core.accumulators import RunningMean, UpdateList
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, RunFailed
from fedloom.core.protocols import Pending
from fedloom.core.records import MODEL, Arrays, Record, RoundContext, Update
from fedloom.strategies.meat.evaluation import Curve, Evaluation, difference, example_scores, numbers, read
from fedloom.strategies.meat.strategy import History, MedianEnsemble, build_strategy

ROUNDS = 8
DRIFT = (0.0, 1.0, 5.0, 2.0, 9.0, 4.0, 7.0, 3.0)
"""What round 1, 2, … trains the one weight to."""


def strategy(rounds: int = ROUNDS, evaluation: dict[str, Any] | None = None, **settings: Any) -> MedianEnsemble:
    experiment = Experiment.parse(
        {
            "rounds": rounds,
            "strategy": {"name": "meat", **settings},
            "workload": "meat",
            "evaluation": {"parts": 2, **(evaluation or {})},
        }
    )
    return build_strategy(experiment.strategy, experiment)  # type: ignore[arg-type]


def context(round: int, cohort: tuple[int, ...] = (0,), rounds: int = ROUNDS) -> RoundContext:
    return RoundContext(round=round, cohort=cohort, population=8, rounds=rounds, seed=3)


def weights(value: float) -> Arrays:
    return {"w": np.full(2, value, np.float32), "n.running_mean": np.full(1, 10 * value, np.float32)}


def answer(accumulator: str, *values: float, sizes: tuple[int, ...] = ()) -> Any:
    total: Any = RunningMean() if accumulator == "mean" else UpdateList()
    for client, value in enumerate(values):
        size = sizes[client] if sizes else 1
        total.add(Update(num_examples=size, groups={MODEL: weights(value)}), float(size), client)
    return total


def played(tested: MedianEnsemble, until: int = ROUNDS) -> list[History]:
    states = [tested.init(Record({MODEL: weights(-1.0)}))]
    for round in range(1, until + 1):
        exchange = tested.plan(states[-1], context(round))
        assert exchange is not None
        step = tested.finish(states[-1], answer(exchange.accumulator, DRIFT[round - 1]), context(round))
        assert not isinstance(step, Pending)
        states.append(step)
    return states


def published(tested: MedianEnsemble, state: History) -> float:
    return float(tested.arrays(state)["w"][0])


def test_training_continues_from_w_while_the_median_of_the_window_is_published() -> None:
    tested = strategy(start=3)
    states = played(tested)
    for round, state in enumerate(states[1:], 1):
        assert float(state.model["w"][0]) == DRIFT[round - 1]
        assert published(tested, state) == np.median(DRIFT[2:round] if round >= 3 else DRIFT[round - 1])
        exchange = tested.plan(state, context(round + 1))
        assert exchange is not None and exchange.inputs[MODEL].groups[MODEL]["w"][0] == DRIFT[round - 1]
    assert states[-1].rounds == (3, 4, 5, 6, 7, 8)


def test_the_window_keeps_the_newest() -> None:
    tested = strategy(start=1, window=3)
    assert [state.rounds for state in played(tested)[-2:]] == [(5, 6, 7), (6, 7, 8)]
    assert published(tested, played(tested)[-1]) == np.median(DRIFT[5:8])


@pytest.mark.parametrize(("rounds", "start"), [(120, 75), (8, 5), (60, 38), (1, 1)])
def test_snapshots_start_where_the_papers_do(rounds: int, start: int) -> None:
    assert strategy(rounds)._start == start  # 75 of 120


def test_the_released_scripts_counter_is_the_first_snapshot_for_ever() -> None:
    tested = strategy(start=3, ensemble="first")
    assert [published(tested, state) for state in played(tested)[3:]] == [DRIFT[2]] * 6


def test_between_evaluations_nothing_is_combined_and_the_last_round_always_is() -> None:
    tested = strategy(start=1, evaluation={"every": 3})
    states = played(tested)
    assert published(tested, states[7]) == published(tested, states[6]) == np.median(DRIFT[:6])
    assert published(tested, states[8]) == np.median(DRIFT)


@pytest.mark.parametrize(("clients", "want"), [("mean", (2 + 3 * 4 + 2 * 90) / 6), ("median", 4.0)])
def test_over_clients_by_mean_or_median(clients: str, want: float) -> None:
    tested = strategy(clients=clients)
    state = tested.init(Record({MODEL: weights(0.0)}))
    where = context(1, (0, 1, 2))
    exchange = tested.plan(state, where)
    assert exchange is not None
    after = tested.finish(state, answer(exchange.accumulator, 2.0, 4.0, 90.0, sizes=(1, 3, 2)), where)
    assert isinstance(after, History) and float(after.model["w"][0]) == pytest.approx(want, rel=1e-6)


def test_a_planted_snapshot_is_corrupted_and_training_is_not() -> None:
    plain, planted = strategy(start=2), strategy(start=2, planted=[5])
    clean, spoilt = played(plain)[-1], played(planted)[-1]
    assert float(spoilt.model["w"][0]) == DRIFT[-1]
    differs = [
        not np.array_equal(a.groups[MODEL]["w"], b.groups[MODEL]["w"])
        for a, b in zip(clean.snapshots, spoilt.snapshots, strict=True)
    ]
    assert differs == [round == 5 for round in clean.rounds]


def exchanges(tested: MedianEnsemble, round: int, state: History) -> list[str]:
    """Play a round whose clients answer everything; the kinds of jobs that were asked."""
    where = context(round, (0, 1))
    exchange = tested.plan(state, where)
    kinds = []
    while exchange is not None:
        kinds.append(exchange.jobs[0].kind)
        total: Any = RunningMean() if exchange.accumulator == "mean" else UpdateList()
        for job in exchange.jobs:
            info: dict[str, Any] = {"model": job.inputs[0]}
            groups: dict[str, Arrays] = {}
            if job.kind == "train":
                groups, info = {MODEL: weights(DRIFT[round - 1])}, {}
            elif job.kind == "statistics":
                groups = {name: {"n.running_mean": np.array([job.client + 1.0], np.float32)} for name in job.inputs}
            elif job.kind == "robustness":
                right = int(exchange.inputs[job.inputs[0]].groups[MODEL]["w"][0])
                info |= {
                    "test": {"examples": 50, "clean": 20, "robust": right},
                    "validation": {"examples": 10, "clean": 9, "robust": right},
                }
            else:
                info |= {"verdicts": {"clean": "11", "fgsm": "10"}, "seconds": {"fgsm": 0.5}}
            size = 1 + 2 * job.client if job.kind == "statistics" else 1
            total.add(Update(num_examples=size, groups=groups, info=info), 1.0, job.client)
        step = tested.finish(state, total, where)
        exchange = step.exchange if isinstance(step, Pending) else None
        state = step.state if isinstance(step, Pending) else step
    exchanges.state = state  # type: ignore[attr-defined]
    return kinds


def test_a_round_asks_for_statistics_measures_and_in_the_end_the_table() -> None:
    tested = strategy(start=2, batch_norm="cumulative", compare=["last", "best", "mean", "middle"], table=True)
    state, reported = tested.init(Record({MODEL: weights(0.0)})), []
    for round in range(1, ROUNDS + 1):
        kinds = exchanges(tested, round, state)
        state = exchanges.state  # type: ignore[attr-defined]
        reported.append((round, tested.report(state)["meat"]))
        if round == 1:
            assert kinds == ["train", "robustness"]
        elif round < ROUNDS:
            assert kinds == ["train", "statistics", "robustness"]
    assert kinds == ["train", "statistics", "robustness", "attack"]
    # the mean over clients by examples of 1 and 2 (1 and 3 examples) replaces the combined statistics
    assert float(tested.arrays(state)["n.running_mean"][0]) == pytest.approx((1 * 1 + 3 * 2) / 4)
    assert tested.evaluation is not None
    assert tested.evaluation(state) == {"accuracy": 0.4, "robust_accuracy": int(np.median(DRIFT[1:])) / 50}
    reading = read(reported)
    assert reading.curves["last"].robust == tuple(int(value) / 50 for value in DRIFT)
    # validation picks round 5 (9 of 10), whose test rate is 9 / 50; the last is 3 / 50
    found = numbers(reading)
    assert found["gap_last"] == pytest.approx((9 - 3) / 50)
    assert found["robust_over_last"] == pytest.approx((int(np.median(DRIFT[1:])) - 3) / 50)
    assert reading.curves["mean"].rounds == tuple(range(2, ROUNDS + 1))
    assert reading.whole("mean").robust[0] == reading.curves["last"].robust[0]  # round 1 has no snapshot yet
    assert float(state.best["w"][0]) == 9.0
    assert reading.verdicts["ensemble"] == {"clean": "1111", "fgsm": "1010"} and found["fgsm_ensemble"] == 0.5
    assert reading.seconds == {"fgsm": 0.5 * 2 * 5}
    assert example_scores(reading)["fgsm_ensemble"] == (1, 0, 1, 0)


def test_what_images_contribute_to_a_number_has_it_as_its_mean() -> None:
    verdicts = {"ensemble": {"apgd": "1101", "clean": "1111"}, "last": {"apgd": "1010", "clean": "1110"}}
    curve = Curve(rounds=(1,), clean=(1.0,), robust=(0.5,), validation=(0.5,))
    evaluation = Evaluation(curves=dict.fromkeys(verdicts, curve), verdicts=verdicts)
    scores, found = example_scores(evaluation), numbers(evaluation)
    assert scores["apgd_over_last"] == (0, 1, -1, 1) and found["apgd_over_last"] == 0.25
    for name, values in scores.items():
        assert sum(values) / 4 == found[name]


def test_a_paired_difference_counts_points_not_rates() -> None:
    found = difference("1111000000", "0111000001")
    assert (found.only_first, found.only_second, found.value, found.p) == (1, 1, 0.0, 1.0)
    found = difference("1" * 12 + "0" * 8, "0" * 20)
    assert found.value == 0.6 and found.p == pytest.approx(2 / 2**12)
    half = 1.96 * np.sqrt(12 - 20 * 0.36) / 20  # variance of the difference of paired shares
    assert found.low == pytest.approx(0.6 - half)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": True}, r"strategy\.table: has no effect"),
        ({"window": 1}, r"strategy\.window: one snapshot is no ensemble"),
        ({"ensemble": "mode"}, r"strategy\.ensemble"),
        ({"compare": ["seta"]}, r"strategy\.compare"),
    ],
)
def test_what_is_set_wrongly_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        strategy(**settings)


def test_a_moving_average_nobody_keeps_is_reported() -> None:
    tested = strategy(compare=["seat"])
    with pytest.raises(RunFailed, match=r"workload\.seat = true"):
        exchanges(tested, 1, tested.init(Record({MODEL: weights(0.0)})))
