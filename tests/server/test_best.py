"""The best round of a run: whose model the final one is, when the run ends early, what a resumed run knows of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.config.sections import BestSettings
from fedloom.core.errors import ConfigError
from fedloom.core.events import Notice, RunFinished
from fedloom.core.history import BestRound
from fedloom.reporting.lines import best_text
from fedloom.server.rounds.best import Best
from fedloom.testing.fleet import EventLog

Make = Callable[..., Experiment]
UPWARDS = {"metric": "loss", "goal": "max"}
"""The loss of these runs falls in every round, so that the first is the best one."""


class TestComparison:
    @pytest.mark.parametrize(
        ("settings", "values", "best", "without_gain"),
        [
            ({"metric": "loss"}, [3.0, 2.0, 2.5, 1.0, 1.0], 4, 1),
            ({"metric": "accuracy"}, [0.5, 0.7, 0.7, 0.6], 2, 2),
            ({"metric": "accuracy", "min_gain": 0.25}, [0.5, 0.75, 0.7, 0.625], 1, 3),  # a gain of 0.25 is not above it
            ({"metric": "accuracy", "min_gain": 0.2}, [0.5, 0.6, 0.75], 3, 0),  # compared with the best, not the last
            ({"metric": "loss"}, [math.nan, 5.0, math.inf, -math.inf], 2, 2),
            ({"metric": "loss"}, [2.0, None, None, 3.0], 1, 1),  # what was not evaluated is no evaluation
            ({"metric": "wer", "goal": "min"}, [0.5, 0.25], 2, 0),
        ],
    )
    def test_the_best_value_so_far_counts(
        self, settings: dict[str, object], values: list[float | None], best: int, without_gain: int
    ) -> None:
        found = Best(BestSettings.model_validate(settings))
        for number, value in enumerate(values, start=1):
            found.look(number, None if value is None else {found_name(settings): value})
        assert (found.round, found.without_gain) == (best, without_gain)
        assert found.value == values[best - 1]

    def test_a_metric_that_is_nowhere_is_named_with_those_there_are(self) -> None:
        with pytest.raises(
            ConfigError, match=r"best\.metric: found no 'acuracy' .* round 5; did you mean 'accuracy'\?"
        ):
            Best(BestSettings(metric="acuracy", goal="max")).look(5, {"accuracy": 0.5, "loss": 1.0})

    def test_a_metric_that_is_missing_once_is_no_gain(self) -> None:
        found = Best(BestSettings(metric="accuracy"))
        assert found.look(1, {"accuracy": 0.5}) and not found.look(2, {"loss": 1.0}) and found.without_gain == 1


def found_name(settings: dict[str, object]) -> str:
    return str(settings["metric"])


class TestRun:
    def test_the_final_model_is_the_best_rounds(self, linear: Make, tmp_path: Path) -> None:
        best, first = (
            api.run(linear(rounds=4, best=UPWARDS), out=tmp_path / "run"),
            api.run(linear(rounds=1), keep=False),
        )
        assert best.summary.rounds == 4
        assert best.summary.best == BestRound(metric="loss", value=first.metrics["loss"], round=1)
        assert best.summary.model_sha256 == first.summary.model_sha256
        assert best.metrics == first.metrics == best.history[0].evaluation
        assert api.saved_state(tmp_path / "run").round == 1

    def test_without_the_setting_it_is_the_last_ones(self, linear: Make) -> None:
        plain = api.run(linear(rounds=3), keep=False)
        smallest = api.run(linear(rounds=3, best="loss"), keep=False)
        assert plain.summary.best is None and smallest.summary.best is not None
        assert smallest.summary.best.round == 3  # the loss falls
        assert plain.summary.model_sha256 == smallest.summary.model_sha256

    def test_it_ends_after_so_many_evaluations_without_a_gain(self, linear: Make, tmp_path: Path) -> None:
        log = EventLog()
        experiment = linear(rounds=9, evaluation={"every": 2}, best={**UPWARDS, "patience": 2})
        result = api.run(experiment, out=tmp_path / "run", sinks=[log])
        assert result.summary.rounds == 6  # evaluated in 2, 4 and 6
        assert result.summary.status == "done"
        assert result.summary.best == BestRound(
            metric="loss", value=result.metrics["loss"], round=2, stopped_early=True
        )
        said = [event.message for event in log.events if isinstance(event, Notice)]
        assert any("loss has not gained in 2 evaluations since round 2" in each for each in said)
        assert isinstance(log.events[-1], RunFinished)
        page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
        assert best_text(result.summary.best).partition(": ")[2].split(",")[0] in page and "the run ended early" in page
        again = api.resume(tmp_path / "run")
        assert again.summary.rounds == 6 and again.summary.model_sha256 == result.summary.model_sha256
        assert again.summary.best == result.summary.best

    def test_a_misspelt_metric_leaves_no_folder(self, linear: Make, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="found no 'los'"):
            api.run(linear(rounds=2, best={"metric": "los", "goal": "min"}), out=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"best": "wer"}, r"best\.goal: required for the metric 'wer'"),
            ({"best": "loss", "evaluation": {"every": 0}}, r"best: needs evaluations, but evaluation\.every is 0"),
            ({"best": {"metric": "loss", "patience": 0}}, r"best\.patience: .*, got 0"),
            ({"best": {"metric": "loss", "patients": 3}}, r"did you mean 'best\.patience'"),
        ],
    )
    def test_wrong_settings_are_refused(self, linear: Make, settings: dict[str, object], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            linear(**settings)


class TestResume:
    @pytest.mark.parametrize("every", [1, 2, 3])
    def test_a_resumed_run_knows_the_best_one(self, linear: Make, tmp_path: Path, every: int) -> None:
        settings = {"best": UPWARDS, "checkpoint": {"every": every, "keep": 1}}
        api.run(linear(rounds=5, **settings), out=tmp_path / "run")
        resumed = api.resume(tmp_path / "run", overrides=["rounds=8"])
        whole = api.run(linear(rounds=8, **settings), keep=False)
        assert resumed.summary.best == whole.summary.best
        assert resumed.summary.model_sha256 == whole.summary.model_sha256
        pinned = list((tmp_path / "run" / "checkpoints").glob("pinned-*"))
        assert len(pinned) == 1  # the best state is written once

    def test_another_patience_is_as_if_it_had_been_given_first(self, linear: Make, tmp_path: Path) -> None:
        api.run(linear(rounds=6, best={**UPWARDS, "patience": 1}), out=tmp_path / "run")
        resumed = api.resume(tmp_path / "run", overrides=["best.patience=3"])
        whole = api.run(linear(rounds=6, best={**UPWARDS, "patience": 3}), keep=False)
        assert resumed.summary.rounds == whole.summary.rounds == 4
        assert resumed.summary.model_sha256 == whole.summary.model_sha256

    @pytest.mark.parametrize("override", ["best=loss", "best.goal=min", "best.min_gain=0.5"])
    def test_another_comparison_is_refused(self, linear: Make, tmp_path: Path, override: str) -> None:
        api.run(linear(rounds=2, best=UPWARDS), out=tmp_path / "run")
        with pytest.raises(ConfigError, match=r"only best\.patience may be changed"):
            api.resume(tmp_path / "run", overrides=["rounds=3", override])

    def test_a_run_without_evaluations_so_far_takes_one(self, linear: Make, tmp_path: Path) -> None:
        api.run(linear(rounds=2, evaluation={"every": 0}), out=tmp_path / "none")
        with pytest.raises(ConfigError, match="needs evaluations"):
            api.resume(tmp_path / "none", overrides=["best=loss"])
