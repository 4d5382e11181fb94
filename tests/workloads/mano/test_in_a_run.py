"""Whole runs: one client through server and agent against a script, settings of the score, the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support_mano import build, estimated, experiment, scripted

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError
from fedloom.core.records import MODEL, arrays_sha256
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies.mano.evaluation import ESTIMATORS, read
from fedloom.strategies.mano.monitor.score import Sums


def by_place(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(lines, key=lambda line: (line["group"], line["name"], line["severity"]))


def test_one_client_through_server_and_agent_is_the_script_bit_for_bit() -> None:
    made = experiment({"augment": "crop", "projnorm": {"steps": 3}}, evaluation={"every": 2, "parts": 1})
    inputs, lines = scripted(made)
    result = api.run(made, keep=False)
    assert arrays_sha256(result.arrays) == arrays_sha256(inputs[MODEL].groups[MODEL])
    reported = result.history[-1].info["mano"]["sets"]
    assert by_place(reported) == by_place(lines)  # every score of every set, to the last bit
    assert set(lines[0]["scores"]) >= {name for name in ESTIMATORS if name != "mano"}
    workload = build(made)
    measured = workload.evaluate({MODEL: inputs[MODEL]}, workload.held_out(0, 1))
    assert result.history[-1].evaluation == {name: mean.value for name, mean in measured.items()}


def test_the_scores_of_a_set_are_those_of_its_logits() -> None:
    made = experiment()
    inputs, lines = scripted(made)
    workload = build(made)
    clean = next(line for line in lines if line["group"] == "clean")
    shard = workload.held_out(0, 1)
    logits, labels = workload.logits({MODEL: inputs[MODEL]}, shard)
    whole = Sums.of(logits[:60])
    assert clean["scores"]["softmax"] == pytest.approx(whole.score("softmax"), abs=1e-6)
    assert clean["scores"]["criterion"] == pytest.approx(whole.criterion, rel=1e-5)
    assert clean["accuracy"] == pytest.approx((logits[:60].argmax(1) == labels[:60]).mean())
    assert len(lines) == 21 and by_place(estimated(workload, inputs, parts=4)) == by_place(lines)


def test_a_federation_trains_both_models_and_another_strategy_needs_neither() -> None:
    common: dict[str, Any] = {"clients": 4, "cohort": 2}
    partition = {"partition": {"scheme": "dirichlet", "alpha": 0.5, "min_size": 10}}
    result = api.run(experiment(partition, **common), keep=False)
    assert len(result.history[-1].info["mano"]["sets"]) == 21 and result.history[-1].local_trainings == 2
    assert result.history[0].info == {}
    plain = {**experiment(partition, **common).to_dict(), "strategy": {"name": "fedprox", "mu": 0.1}}
    assert (api.run(Experiment.parse(plain), keep=False).history[-1].evaluation or {})["accuracy"] > 0.2


def line(phi: float, softmax: float, taylor: float, accuracy: float, group: str = "mild") -> dict[str, Any]:
    return {
        "group": group,
        "family": "noise",
        "name": f"n{phi:g}",
        "severity": 1,
        "samples": 10,
        "accuracy": accuracy,
        "balance": 0.9,
        "scores": {
            "criterion": phi,
            "softmax": softmax,
            "taylor": taylor,
            "softmax_batches": softmax - 0.01,
            "taylor_batches": taylor - 0.01,
        },
    }


def test_all_sets_of_an_experiment_use_one_branch_unless_it_is_asked_for_per_set() -> None:
    lines = [line(4.0, 0.30, 0.20, 0.3), line(5.5, 0.40, 0.25, 0.5), line(8.0, 0.50, 0.35, 0.9)]
    rule = {"eta": 5.0, "criterion": "ce", "branch": "fixed", "whole_set": True}

    def scores(**changes: Any) -> list[float]:
        table = read({"rule": {**rule, **changes}, "sets": lines}, 10).tables["mild"]
        return [float(score) for score in table.scores["mano"]]

    assert scores() == [0.30, 0.40, 0.50]  # mean criterion 5.83
    assert scores(eta=6.0) == scores(branch="taylor") == [0.20, 0.25, 0.35]
    assert scores(branch="per_set") == [0.20, 0.40, 0.50]
    assert scores(branch="first") == [0.20, 0.25, 0.35]
    assert scores(criterion="kl") == [0.20, 0.25, 0.35]  # 5.83 - ln 10 = 3.53
    assert scores(whole_set=False) == pytest.approx([0.29, 0.39, 0.49])
    table = read({"rule": rule, "sets": lines}, 10).tables["mild"]
    assert set(table.branches) == {"softmax"} and table.scores["per_set"].tolist() == [0.20, 0.40, 0.50]
    assert table.with_eta(9.0, 10, "ce").tolist() == [0.20, 0.25, 0.35]
    assert table.with_eta(0.0, 10, "ce").tolist() == [0.30, 0.40, 0.50]


def test_the_report_has_the_table_the_scatters_and_the_branch(tmp_path: Path) -> None:
    api.run(experiment({"suite": {"banks": ["mild", "harsh"], "severities": [2, 5], "images": 60}}), out=tmp_path / "r")
    run = RunFolder.read(tmp_path / "r")
    html = render_report(run)
    for expected in (
        "Accuracy without labels",
        "Nuclear: R²",
        "MaNo&#x27;s branch was",
        "excluded family",
        "criterion",
    ):
        assert expected in html
    (contribution,) = contributions(run)
    numbers = contribution.numbers
    assert not any("." in name for name in numbers)
    lines = [each for each in run.rounds[-1].info["mano"]["sets"] if each["group"] == "mild"]
    assert len(lines) == 40
    x, y = [each["scores"]["nuclear"] for each in lines], [each["accuracy"] for each in lines]
    assert numbers["mild_r2_nuclear"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    assert numbers["mild_r2_over_nuclear"] == pytest.approx(numbers["mild_r2_mano"] - numbers["mild_r2_nuclear"])
    assert {f"mild_left_out_{name}" for name in ("noise", "blur", "geometric", "photometric")} <= set(numbers)


def test_a_run_that_has_not_come_to_its_end_has_nothing_to_tell(tmp_path: Path) -> None:
    result = api.run(experiment(rounds=2), out=tmp_path / "r")
    run = RunFolder.read(tmp_path / "r")
    object.__setattr__(run, "rounds", run.rounds[:1])
    assert result.history and contributions(run) == [type(contributions(run)[0])()]


def test_contradicting_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"workload\.frozen"):
        experiment({"frozen": True})
    with pytest.raises(ConfigError, match=r"workload\.styles\.unseen"):
        experiment({"styles": {"clusters": 2, "unseen": 2}})
    with pytest.raises(ConfigError, match=r"workload\.train_examples"):
        build(experiment({"train_examples": 5000}))
