"""What a low-rank run's report says: the saving in all its readings, ranks, errors; and its row in comparisons."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from tests.strategies.low_rank.conftest import FULL, HEAD, WIDTH, experiment

from fedloom import api
from fedloom.core.history import RoundRecord, Timing, Traffic
from fedloom.core.records import ClientFailure
from fedloom.reporting.comparison import compare
from fedloom.reporting.plugins import Contribution, contributions
from fedloom.reporting.quantities import NOTHING
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.strategies._low_rank.budgets import read

SA = {"initiating_rounds": 2, "rank_max": 8, "rank_min": 2, "heating": 0.25, "cooling": 0.25}
RANKS = (8, 4, 2, 2)
"""Of the annealing rounds; see test_runs."""


def done(folder: Path, strategy: str, settings: dict[str, Any], **changes: Any) -> RunFolder:
    api.run(experiment(strategy, settings=settings, evaluation={"every": 2}, **changes), out=folder)
    return RunFolder.read(folder)


def reported(run: RunFolder) -> Contribution:
    (found,) = contributions(run)
    return found


class TestNumbers:
    def test_every_reading_is_its_formula(self, tmp_path: Path) -> None:
        run = done(tmp_path / "run", "sa_fedlora", SA, clients=2)  # both clients are asked in every round
        numbers = reported(run).numbers
        adapted = sum(WIDTH * rank + HEAD for rank in RANKS)
        up = 2 * FULL + adapted
        assert numbers["saving"] == pytest.approx(1 - up / (6 * FULL))
        assert numbers["saving_bound"] == pytest.approx(1 - 2 / 6)
        assert numbers["saving_annealing"] == pytest.approx(1 - adapted / (4 * FULL))
        assert numbers["saving_both_ways"] == pytest.approx(1 - (2 * up + FULL - HEAD) / (12 * FULL))
        assert numbers["saving_rank_rounds"] == pytest.approx(1 - 16 / 32)
        assert (numbers["rank_rounds"], numbers["mean_rank"]) == (16, 4)
        assert numbers["params_base"] == FULL - HEAD
        sent = sum(record.traffic.bytes_up for record in run.rounds)
        assert numbers["saving_bytes"] == pytest.approx(1 - sent / (2 * 6 * 4 * FULL))
        errors = [record.info["aggregation_error"] for record in run.rounds[2:]]
        assert numbers["aggregation_error"] == pytest.approx(sum(errors) / 4)
        evaluation = run.rounds[-1].evaluation
        assert evaluation is not None and numbers["last_accuracy"] == evaluation["accuracy"]
        assert not any("." in name for name in numbers)

    def test_a_round_whose_clients_fail_is_compared_with_the_answers_it_had(self) -> None:
        failure = ClientFailure(client=3, round=1, stage="train", error="E", message="m")
        record = RoundRecord(
            round=1,
            cohort=[1, 3],
            num_examples=5,
            metrics={},
            traffic=Traffic(params_up=40, params_down=80),
            timing=Timing(),
            failures=[failure],
            info={"stage": "annealing", "rank": 2, "ranks": {"a": 1, "b": 3}},
        )
        budgets = read([record, record.model_copy(update={"info": {}})], full=100)
        assert len(budgets.rounds) == 1 and budgets.rounds[0].rank == 2
        assert budgets.savings()["saving"].share == pytest.approx(1 - 40 / 100)
        assert budgets.savings()["saving_both_ways"].share == pytest.approx(1 - 120 / 300)
        assert math.isnan(budgets.numbers()["aggregation_error"]) and not budgets.uniform

    def test_only_whole_models_save_nothing(self, tmp_path: Path) -> None:
        settings = {**SA, "initiating_rounds": 6, "heating": 0, "cooling": 0}
        numbers = reported(done(tmp_path / "run", "sa_fedlora", settings)).numbers
        assert numbers["saving"] == numbers["saving_bound"] == 0.0
        assert math.isnan(numbers["mean_rank"]) and math.isnan(numbers["saving_annealing"])

    @pytest.mark.parametrize(
        ("strategy", "settings"),
        [
            ("fedlora", {"rank": 3}),
            ("ffa_lora", {"rank": 3}),
            ("flora", {"rank": 3}),
            ("flexlora", {"rank": 3}),
            ("hetlora", {"rank": 3}),
            ("flasc", {"rank": 3}),
            ("fed_adalora", {"rank_max": 4, "rank_min": 2}),
            ("spd_cfl", {"rank_max": 4, "rank_min": 2}),
        ],
    )
    def test_each_of_the_family_has_a_report(self, strategy: str, settings: dict[str, Any], tmp_path: Path) -> None:
        run = done(tmp_path / "run", strategy, settings, rounds=2)
        found = reported(run)
        sent = sum(record.traffic.params_up for record in run.rounds)
        assert found.numbers["saving"] == pytest.approx(1 - sent / (2 * 2 * FULL))
        assert found.numbers["saving_bound"] == 1.0 and len(found.sections) == 1


class TestSection:
    def test_it_shows_saving_bound_stages_and_readings(self, tmp_path: Path) -> None:
        run = done(tmp_path / "run", "sa_fedlora", SA)
        page = render_report(run)
        assert "Communication budget" in page and "at most 66.67 %" in page
        assert "whole models" in page and "Rounds 1 to 2 sent whole models." in page
        assert page.count("<code>saving") == 6 and "8 → 2" in page
        assert f"{FULL:,} parameters" in page
        assert "All 2 layers with adapters had the round" in page and "Rank of each layer" not in page

    def test_layers_of_different_rank_are_drawn(self, tmp_path: Path) -> None:
        falling = {"rank_max": 12, "rank_min": 2, "law": "linear", "allocation": "importance"}
        run = done(tmp_path / "run", "sa_fedlora", falling, rounds=12)
        assert any(len(set(record.info["ranks"].values())) > 1 for record in run.rounds[2:])
        assert "Rank of each layer" in render_report(run)

    def test_a_constant_rank_and_an_exact_aggregation_are_said_not_drawn(self, tmp_path: Path) -> None:
        page = render_report(done(tmp_path / "run", "ffa_lora", {"rank": 3}, rounds=2))
        assert "Rank of each round" not in page and "Aggregation error" not in page
        assert "in every round" in page and "The aggregation was exact in every round." in page
        assert "at most" not in page

    def test_a_run_without_a_round_has_none(self, tmp_path: Path) -> None:
        run = done(tmp_path / "run", "fedlora", {"rank": 3}, rounds=1)
        (tmp_path / "run" / "rounds.jsonl").write_text("", encoding="utf-8")
        assert reported(RunFolder.read(run.path)) == Contribution()


def test_a_comparison_has_a_row_with_the_saving(tmp_path: Path) -> None:
    done(tmp_path / "low", "sa_fedlora", SA)
    done(tmp_path / "plain", "fedavg", {})
    compared = compare([tmp_path / "low", tmp_path / "plain"])
    (row,) = [row for row in compared.results if row.name == "uplink saving"]
    assert re.fullmatch(r"\d\d\.\d\d % \(at most 66\.67 %\)", row.cells[0]) and row.cells[1] == NOTHING
    other = done(tmp_path / "other", "fedavg", {}).path
    assert not any("saving" in row.name for row in compare([tmp_path / "plain", other]).results)
