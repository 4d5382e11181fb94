"""Whole runs: one client through server and agent against a script, many clients, resumption, the report."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_meat import act, build, experiment, initial

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import MODEL, Arrays, Record, arrays_sha256
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder

COMPARED = ["last", "best", "mean", "trimmed", "ema", "middle", "first", "seat"]


def scripted(made: Experiment) -> tuple[dict[str, Arrays], dict[str, float]]:
    """Adversarial training of one model and the median of its history, with no platform: what a paper's script does."""
    workload = build(made)
    record, state, history = initial(workload), None, list[Arrays]()
    for epoch in range(1, made.rounds_known("this loop") + 1):
        update = act(workload, "train", {MODEL: record}, state=state, round=epoch)
        record, state = Record({MODEL: update.groups[MODEL]}), update.state
        if epoch >= 2:
            history.append(update.groups[MODEL])
    ensemble: Arrays = {name: np.median([each[name] for each in history], axis=0) for name in history[0]}
    found = act(
        workload,
        "statistics",
        {"ensemble": Record({MODEL: ensemble})},
        round=made.rounds,
        exchange=1,
        inputs=("ensemble",),
        knobs={"rule": "cumulative"},
    )
    ensemble = {**ensemble, **found.groups["ensemble"]}
    measured = workload.evaluate({MODEL: Record({MODEL: ensemble})}, workload.held_out(0, 1))
    return {"last": record.groups[MODEL], "ensemble": ensemble}, {name: mean.value for name, mean in measured.items()}


@pytest.mark.parametrize(
    ("runtime", "defense"),
    [
        pytest.param("inline", {"name": "at"}, id="at-inline"),
        pytest.param("process", {"name": "trades", "awp_gamma": 0.01}, id="trades-awp-process", marks=pytest.mark.slow),
    ],
)
def test_one_client_through_server_and_agent_is_the_script_bit_for_bit(runtime: str, defense: dict[str, Any]) -> None:
    made = experiment(
        {"defense": defense},
        {"batch_norm": "cumulative"},
        runtime={"name": runtime, "workers": 2} if runtime == "process" else {"name": runtime},
        evaluation={"every": 0, "parts": 1},
    )
    models, metrics = scripted(made)
    result = api.run(made, keep=False)
    assert arrays_sha256(result.arrays) == arrays_sha256(models["ensemble"])
    last = api.run(made.override(["strategy.ensemble=last"]), keep=False)
    assert arrays_sha256(last.arrays) == arrays_sha256(models["last"])
    assert arrays_sha256(last.arrays) != arrays_sha256(result.arrays)
    evaluated = api.run(made.override(["evaluation.every=4"]), keep=False).history[-1].evaluation
    assert evaluated == metrics  # the platform's own evaluation, as no models are compared


def test_a_resumed_run_has_the_same_bits_and_the_same_records(tmp_path: Path) -> None:
    made = experiment({"seat": True}, {"compare": ["last", "best", "seat"], "window": 3}, rounds=5)
    whole = api.run(made, out=tmp_path / "whole")

    class Stop:
        def write(self, event: Any) -> None:
            if type(event).__name__ == "RoundFinished" and event.record.round == 3:
                raise KeyboardInterrupt

        def close(self) -> None: ...

    with pytest.raises(BaseException):  # noqa: B017
        api.run(made, out=tmp_path / "cut", sinks=[Stop()])
    resumed = api.resume(tmp_path / "cut")
    assert resumed.summary.model_sha256 == whole.summary.model_sha256
    reported = [[record.info for record in result.history] for result in (whole, resumed)]
    assert reported[0] == reported[1]


def test_a_federation_by_mean_and_median_over_clients_and_rounds() -> None:
    partition = {"partition": {"scheme": "dirichlet", "alpha": 0.5, "min_size": 10}, "keep_momentum": False}
    common: dict[str, Any] = {"clients": 5, "cohort": 4, "evaluation": {"parts": 1}}
    shas = set()
    for clients in ("mean", "median"):
        for ensemble in ("last", "median"):
            made = experiment(partition, {"clients": clients, "ensemble": ensemble}, **common)
            result = api.run(made, keep=False)
            assert result.history[-1].local_trainings == 4
            assert set(result.history[-1].evaluation or {}) == {"loss", "accuracy", "robust_accuracy"}
            shas.add(result.summary.model_sha256)
    assert len(shas) == 4


def test_a_median_over_clients_shrugs_off_a_faulty_client_and_a_mean_does_not() -> None:
    partition = {"partition": {"scheme": "iid"}, "faulty_clients": 0.2, "keep_momentum": False, "train_examples": 1000}
    common: dict[str, Any] = {"clients": 5, "rounds": 6, "evaluation": {"every": 6, "parts": 1}}
    accuracy = {
        clients: (
            api.run(experiment(partition, {"clients": clients, "ensemble": "last"}, **common), keep=False)
            .history[-1]
            .evaluation
            or {}
        )["accuracy"]
        for clients in ("mean", "median")
    }
    assert accuracy["median"] > 0.5 and accuracy["median"] > accuracy["mean"] + 0.2


def test_the_report_shows_curves_gap_attacks_and_outliers(tmp_path: Path) -> None:
    made = experiment({"seat": True}, {"compare": COMPARED, "table": True, "batch_norm": "cumulative"}, rounds=5)
    api.run(made, out=tmp_path / "run")
    run = RunFolder.read(tmp_path / "run")
    html = render_report(run)
    for expected in (
        "Robustness",
        "median (published)",
        "first snapshot (released script)",
        "gap, points",
        "Attacks",
        "only theirs",
        "Weight outliers",
        "Outlying weights",
    ):
        assert expected in html
    (contribution,) = contributions(run)
    numbers = contribution.numbers
    assert {f"robust_{name}" for name in ("ensemble", *COMPARED)} <= set(numbers)
    assert not any("." in name for name in numbers)
    reported = run.rounds[-1].info["meat"]
    rates = reported["rates"]
    assert numbers["robust_over_last"] == rates["ensemble"]["robust"] - rates["last"]["robust"]
    assert (run.rounds[-1].evaluation or {})["robust_accuracy"] == rates["ensemble"]["robust"]
    for verdicts in reported["verdicts"].values():
        assert {len(each) for each in verdicts.values()} == {20}
        assert verdicts["clean"].count("1") >= max(verdicts[attack].count("1") for attack in ("fgsm", "pgd-10"))
    # measuring is no training: neither examples, nor metrics, nor seconds of clients
    assert run.rounds[-1].num_examples == 200 and set(run.rounds[-1].metrics) == {"loss"}
    assert set(run.rounds[-1].client_seconds) == {"0"}
    # a run of another strategy contributes nothing
    assert contributions(dataclasses.replace(run, rounds=())) == [type(contribution)()]


def test_the_workload_serves_other_strategies(tmp_path: Path) -> None:
    made = Experiment.parse(
        {
            **experiment({"keep_momentum": False}, clients=4, rounds=3).to_dict(),
            "strategy": {"name": "fedprox", "mu": 5.0},
        }
    )
    plain = made.override(["strategy.mu=0"])
    pulled, free = (api.run(each, keep=False) for each in (made, plain))
    start = initial(build(made)).groups[MODEL]

    def moved(arrays: Arrays) -> float:
        return float(np.sqrt(sum(((arrays[name] - start[name]) ** 2).sum() for name in start if "running" not in name)))

    assert moved(pulled.arrays) < moved(free.arrays)  # the rule's term was felt in every step


def test_a_missing_package_ends_the_run_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedloom.core.errors import UsageError

    monkeypatch.setattr("fedloom.workloads._attacks.auto.PACKAGE", "no_such_package")
    made = experiment({"measure": {"table": ["autoattack"]}}, {"compare": ["last"], "table": True})
    with pytest.raises(UsageError, match="no_such_package"):
        api.run(made, keep=False)


def test_too_few_batches_for_the_released_rule_end_the_run_before_it_begins() -> None:
    with pytest.raises(ConfigError, match="at least 132 batches"):
        api.run(experiment(strategy={"batch_norm": "released"}), keep=False)
