"""The label-free monitor: exact pooling, the line through anchors, warnings, and whole runs with it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_rounds import build

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ClientFailed, ConfigError, UnsupportedFeature
from fedloom.core.records import MODEL, ClientReport, Info, Mean, Record
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies.mano.monitor.config import Config
from fedloom.strategies.mano.monitor.monitor import ESTIMATE, TRUTH, LabelFreeAccuracy
from fedloom.strategies.mano.monitor.score import Sums, choose
from fedloom.strategies.mano.monitor.watch import logit_sums

CLASSES = 5


def answers(logits: Sequence[np.ndarray], accuracy: Sequence[float | None] | None = None) -> list[ClientReport]:
    known = accuracy or [None] * len(logits)
    return [
        ClientReport(
            client=client,
            num_examples=len(q),
            seconds=0.0,
            info=logit_sums(q),
            metrics={} if right is None else {"accuracy": Mean(right * len(q), len(q))},
        )
        for client, (q, right) in enumerate(zip(logits, known, strict=True))
    ]


def confident(samples: int, strength: float, seed: int = 1) -> np.ndarray:
    """Logits that favour each class in turn."""
    rng = np.random.default_rng(seed)
    return strength * np.eye(CLASSES)[np.arange(samples) % CLASSES] + 0.1 * rng.normal(size=(samples, CLASSES))


def monitor(**settings: Any) -> LabelFreeAccuracy:
    return LabelFreeAccuracy(Config(**settings))


def test_what_clients_send_adds_up_to_the_pooled_score() -> None:
    q = np.random.default_rng(2).normal(0, 3, (523, CLASSES))
    parts = np.split(q, [3, 100, 101, 400])
    reported = monitor(anchors=0).read(answers(parts), []).info
    whole = Sums.of(q)
    assert reported["samples"] == 523
    assert reported["criterion"] == pytest.approx(whole.criterion, abs=1e-9)
    assert reported["softmax"] == pytest.approx(whole.score("softmax"), abs=1e-9)
    assert reported["taylor"] == pytest.approx(whole.score("taylor"), abs=1e-9)
    shares = np.bincount(q.argmax(1), minlength=CLASSES) / 523
    assert reported["balance"] == pytest.approx(-(shares * np.log(shares)).sum() / math.log(CLASSES))
    assert {key for each in answers(parts) for key in each.info} == {"log_shares", "softmax", "taylor", "predicted"}


def test_anchors_are_left_out_of_what_is_estimated() -> None:
    parts = [confident(50, 1.0), confident(50, 2.0), confident(70, 3.0), confident(30, 4.0)]
    reported = monitor(anchors=2, clients=4).read(answers(parts, [0.5, 0.6, 0.7, 0.9]), [])
    assert reported.info["softmax"] == pytest.approx(Sums.of(np.concatenate(parts[2:])).score("softmax"), abs=1e-9)
    assert reported.metrics[TRUTH] == pytest.approx((0.7 * 70 + 0.9 * 30) / 100)
    assert [line["client"] for line in reported.info["anchors"]] == [0, 1]


def test_the_estimate_is_the_anchors_accuracy_moved_along_the_fitted_slope() -> None:
    parts = [confident(60, 1.0), confident(60, 2.5), confident(60, 2.0, seed=9)]
    reported = monitor(anchors=2, clients=3, branch="softmax").read(answers(parts, [0.4, 0.8, None]), [])
    scores = [Sums.of(part).score("softmax") for part in parts]
    slope = np.polyfit([1 / CLASSES, scores[0], scores[1]], [1 / CLASSES, 0.4, 0.8], 1)[0]
    pooled = Sums.of(np.concatenate(parts[:2])).score("softmax")
    assert reported.metrics[ESTIMATE] == pytest.approx(0.6 + slope * (scores[2] - pooled))
    assert TRUTH not in reported.metrics and "accuracy" not in reported.info


def test_without_anchors_there_are_scores_and_no_estimate() -> None:
    reported = monitor(anchors=0).read(answers([confident(20, 2.0)] * 3, [0.5] * 3), [])
    assert ESTIMATE not in reported.metrics and reported.metrics[TRUTH] == pytest.approx(0.5)


def test_the_slope_forgets_old_rounds_and_is_never_negative() -> None:
    parts = [confident(60, 1.0), confident(60, 3.0), confident(60, 2.0)]
    old = monitor(anchors=2, clients=3).read(answers(parts, [0.15, 0.05, None]), []).info
    assert old["slope"] == 0.0
    now = answers(parts, [0.4, 0.8, None])
    fresh = monitor(anchors=2, clients=3).read(now, []).info["slope"]
    assert monitor(anchors=2, clients=3, memory=1).read(now, [old]).info["slope"] == fresh
    assert monitor(anchors=2, clients=3, memory=2).read(now, [old]).info["slope"] < fresh


def test_the_branch_is_decided_once_unless_it_is_asked_for_in_each_round() -> None:
    unsure, sure = [confident(40, 0.5)] * 3, [confident(40, 30.0)] * 3
    assert choose(Sums.of(unsure[0]).criterion, CLASSES) == "taylor"
    assert choose(Sums.of(sure[0]).criterion, CLASSES) == "softmax"
    for branch, want in (("fixed", "taylor"), ("per_set", "softmax"), ("softmax", "softmax")):
        watcher = monitor(anchors=0, branch=branch)
        first = watcher.read(answers(unsure), []).info
        assert watcher.read(answers(sure), [first]).info["branch"] == want


def test_a_collapsed_model_raises_the_warning_of_balance() -> None:
    parts = [confident(50, 2.0) for _ in range(3)]
    watcher = monitor(anchors=0)
    before = watcher.read(answers(parts), [])
    assert not before.warnings and before.info["balance"] == pytest.approx(1.0, abs=1e-6)
    biased = [part + 20.0 * np.eye(CLASSES)[2] for part in parts]
    after = watcher.read(answers(biased), [])
    assert after.info["softmax"] > before.info["softmax"]  # it looks surer than ever
    assert list(after.warnings) == ["predictions are on few classes"]


def test_a_client_that_drifts_is_reported_in_the_round_it_does_and_clean_rounds_raise_nothing() -> None:
    watcher, earlier = monitor(anchors=2, clients=6), list[Info]()
    rng = np.random.default_rng(8)
    for number in range(21):
        parts = [confident(100, 4.0, seed=int(rng.integers(1 << 30))) for _ in range(6)]
        if number == 20:
            parts[4] = confident(100, 0.5)
        reported = watcher.read(answers(parts, [0.9] * 6), earlier)
        earlier.append(reported.info)
        assert list(reported.warnings) == ([] if number < 20 else ["client 4 has drifted"])


def test_requested_clients() -> None:
    rng = np.random.default_rng(1)
    assert monitor().request(3, rng).clients == tuple(range(20)) and monitor().request(3, rng).parts == 20
    own = monitor(data="own", clients=5)
    asked = own.request(100, rng)
    assert asked.parts is None and asked.clients[:2] == (0, 1) and len(set(asked.clients)) == 5
    assert own.request(100, rng).clients != asked.clients
    assert own.request(4, rng).clients == (0, 1, 2, 3)


def test_settings_that_leave_nobody_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"monitor\.anchors"):
        Config(clients=3, anchors=3)


def experiment(**settings: Any) -> Experiment:
    base = {
        "rounds": 4,
        "clients": 6,
        "cohort": 3,
        "strategy": "fedavg",
        "workload": {
            "name": "image_classification",
            "model": {"name": "mlp", "hidden": [16]},
            "training": {"learning_rate": 0.05, "batch_size": 16, "momentum": 0.9},
        },
        "monitor": {"name": "mano", "clients": 8},
        "evaluation": {"every": 2},
        "runtime": {"name": "inline"},
    }
    return Experiment.parse({**base, **settings})


@pytest.mark.parametrize("data", ["held_out", "own"])
def test_a_run_is_watched_and_its_sums_are_those_of_the_pooled_data(data: str) -> None:
    made = experiment(monitor={"name": "mano", "clients": 6, "data": data, "anchors": 1})
    result = api.run(made, keep=False)
    assert [bool(record.monitor) for record in result.history] == [False, True, False, True]
    reported, workload = result.history[-1].monitor, build(made)
    inputs = {MODEL: Record({MODEL: result.arrays})}
    shards = [workload.held_out(k, 6) if data == "held_out" else workload.shard(k) for k in range(1, 6)]
    logits, labels = zip(*(workload.logits(inputs, shard) for shard in shards), strict=True)
    whole = Sums.of(np.concatenate(logits))
    for branch in ("softmax", "taylor"):
        assert reported[branch] == pytest.approx(whole.score(branch), abs=1e-9)
    assert reported["criterion"] == pytest.approx(whole.criterion, abs=1e-9)
    right = np.concatenate(logits).argmax(1) == np.concatenate(labels)
    evaluation = result.history[-1].evaluation or {}
    assert evaluation[TRUTH] == pytest.approx(right.mean()) and 0 <= evaluation[ESTIMATE] <= 1


def test_watching_changes_nothing_but_what_it_costs() -> None:
    watched, alone = api.run(experiment(), keep=False), api.run(experiment(monitor=None), keep=False)
    assert watched.summary.model_sha256 == alone.summary.model_sha256
    assert [record.metrics for record in watched.history] == [record.metrics for record in alone.history]
    traffic, plain = watched.history[1].traffic, alone.history[1].traffic
    assert traffic.params_up - plain.params_up == 8 * (3 + 10)  # three sums and ten counts for each of eight
    assert traffic.params_down - plain.params_down == 8 * sum(array.size for array in watched.arrays.values())
    assert watched.history[0].traffic.params_up == alone.history[0].traffic.params_up


def test_processes_and_a_resumed_run_tell_the_same(tmp_path: Path) -> None:
    whole = api.run(experiment(), out=tmp_path / "whole")
    other = api.run(experiment(runtime={"name": "process", "workers": 2}), keep=False)

    class Stop:
        def write(self, event: Any) -> None:
            if type(event).__name__ == "RoundFinished" and event.record.round == 3:
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises(BaseException):  # noqa: B017
        api.run(experiment(), out=tmp_path / "cut", sinks=[Stop()])
    resumed = api.resume(tmp_path / "cut")
    reported = [[record.monitor for record in result.history] for result in (whole, other, resumed)]
    assert reported[0] == reported[1] == reported[2]
    run = RunFolder.read(tmp_path / "whole")
    html = render_report(run)
    assert "Accuracy without labels, round by round" in html and "estimated without labels" in html
    (contribution,) = contributions(run)
    pairs = [(record.monitor["estimate"], record.monitor["accuracy"]) for record in run.rounds if record.monitor]
    assert contribution.numbers["monitor_error"] == pytest.approx(np.mean([abs(a - b) for a, b in pairs]))


def test_a_warning_is_a_notice_when_it_comes(tmp_path: Path) -> None:
    made = experiment(monitor={"name": "mano", "clients": 8, "balance_floor": 1.0})
    api.run(made, out=tmp_path / "run")
    notices = [event for event in RunFolder.read(tmp_path / "run").events if event["event"] == "Notice"]
    assert sum("predictions are on few classes" in event["message"] for event in notices) == 1


@pytest.mark.parametrize(
    "workload",
    [
        {"name": "image_classification", "model": {"name": "cnn"}},
        {"name": "spiking_classification", "time_steps": 4, "model": {"name": "mlp", "hidden": [16]}},
        {"name": "meat", "train_examples": 200},
        {"name": "mano", "data": {"source": "digits"}},
    ],
    ids=lambda workload: workload["name"],
)
def test_a_workloads_logits_are_those_its_evaluation_judges(workload: dict[str, Any]) -> None:
    made = experiment(workload=workload, clients=2, cohort=2)
    built = build(made)
    record = built.init(np.random.default_rng(3))
    inputs = {MODEL: Record({MODEL: record.groups[MODEL]})}
    for shard in (built.held_out(1, 3), built.shard(0)):
        logits, labels = built.logits(inputs, shard)
        assert logits.shape == (shard.num_examples, 10) and len(labels) == shard.num_examples
        accuracy = built.evaluate(inputs, shard)["accuracy"].value
        assert (logits.argmax(1) == labels).mean() == pytest.approx(accuracy)


def test_a_workload_without_logits_cannot_be_watched(linear: Any) -> None:
    with pytest.raises((UnsupportedFeature, ClientFailed), match="needs a workload with logits"):
        api.run(linear(monitor="mano", rounds=1), keep=False)
