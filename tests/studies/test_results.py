"""From run folders with known curves to the numbers of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fedloom.studies.definition import Definition
from fedloom.studies.grid import expand
from fedloom.studies.report.page import render_study
from fedloom.studies.report.terminal import print_study
from fedloom.studies.results import StudyResult, analyse, write_results

CURVES = {
    ("few", 5): [0.1, 0.2, 0.4, 0.5],
    ("few", 6): [0.1, 0.3, 0.5, 0.7],
    ("many", 5): [0.3, 0.6, 0.6, 0.6],
    ("many", 6): [0.1, 0.2, 0.3, 0.3],
}
COUNTS = [[4, 0], [0, 4], [2, 2]]


@pytest.fixture
def result(study: Callable[..., dict[str, Any]], finished_run: Callable[..., None], tmp_path: Path) -> StudyResult:
    claims = [
        {"id": "A", "text": "rounds", "arm": "many", "checks": [{"of": "rounds_ratio", "at_most": 1.0}]},
        {
            "id": "B",
            "text": "p",
            "arm": "many",
            "primary": True,
            "checks": [{"of": "rounds_ratio.p_less", "at_most": 0.05}],
        },
        {"id": "C", "text": "absent", "arm": "many", "checks": [{"of": "taste", "at_least": 1.0}]},
        {"id": "D", "text": "only told", "arm": "many", "shows": ["auc_difference"], "earlier": {"base": "<b>7</b>"}},
    ]
    made = Definition.parse(
        study(
            metric="accuracy", better="higher", target={"share": 0.9, "last": 2}, claims=claims,
            analyses=["balance", "participation"],
        )
    )  # fmt: skip
    grid = expand(made)
    for planned in grid:
        finished_run(
            planned,
            tmp_path,
            CURVES[planned.arm, planned.seed],
            trainings=2 if planned.arm == "few" else 4,
            cohorts=[[0], [0, 1], [1], [0, 1]] if planned.arm == "few" else [[0]] * 4,
            label_counts=COUNTS,
        )
    return analyse(made, grid, tmp_path)


def test_target_rounds_and_ratios(result: StudyResult) -> None:
    scenario = result.scenarios["base"]
    # Finals of `few`: means of the last two, 0.45 and 0.6; their median 0.525, times 0.9.
    assert scenario.target == pytest.approx(0.4725)
    few, many = scenario.arms["few"], scenario.arms["many"]
    assert [run["rounds"] for run in few.runs.values()] == [4.0, 3.0]
    assert [run["rounds"] for run in many.runs.values()] == [2.0, 5.0]  # the second never: T + 1
    assert (few.censored, many.censored) == (0, 1)
    assert many.estimates["rounds"].value == 3.5
    assert many.estimates["rounds_ratio"].value == pytest.approx((2 / 4 + 5 / 3) / 2)
    # Trainings: few 2 a round, many 4: at the target 8 and 6; 8 and 16 x 5/4 = 20.
    assert many.estimates["trainings_to_target_ratio"].value == pytest.approx((8 / 8 + 20 / 6) / 2)
    assert many.estimates["bytes_to_target_ratio"].value == pytest.approx((2 * 180 / (4 * 100) + 5 * 180 / 300) / 2)
    assert many.estimates["auc_difference"].value == pytest.approx((0.525 - 0.3 + 0.225 - 0.4) / 2)
    assert "rounds_ratio" not in few.estimates
    # At equal trainings: costs few 2, 4, 6, 8; many 4, 8, 12, 16, so [4, 8] is shared.
    few_5, many_5 = (0.2 + 0.4) / 4 + (0.4 + 0.5) / 4, (0.3 + 0.6) / 2
    few_6, many_6 = (0.3 + 0.5) / 4 + (0.5 + 0.7) / 4, (0.1 + 0.2) / 2
    expected = ((many_5 - few_5) + (many_6 - few_6)) / 2
    assert many.estimates["auc_at_equal_trainings_difference"].value == pytest.approx(expected)


def test_balance_is_that_of_the_pools(result: StudyResult) -> None:
    few = result.scenarios["base"].arms["few"]
    # Pools (4, 0), (4, 4), (0, 4), (4, 4): KL ln 2, 0, ln 2, 0; QCID 1/2, 0, 1/2, 0.
    assert few.estimates["kl"].value == pytest.approx(math.log(2) / 2)
    assert few.estimates["qcid"].value == pytest.approx(0.25)
    # Windows of three: (4, 0), (8, 4), (8, 8), (8, 12).
    p = np.array([[8, 4], [8, 12]]) / np.array([[12], [20]])
    kl = (p * np.log(2 * p)).sum(axis=1)
    assert few.estimates["kl_3"].value == pytest.approx((math.log(2) + kl.sum()) / 4)
    assert few.estimates["coverage"].value == pytest.approx(2 / 6)
    assert few.times_aggregated[:3] == (3.0, 3.0, 0.0)


def test_claims(result: StudyResult) -> None:
    assert {verdict.claim: verdict.outcome for verdict in result.verdicts} == {
        "A": "undecided", "B": "undecided", "C": "not measured", "D": "reported",
    }  # fmt: skip


def test_a_claim_may_compare_with_another_arm_than_the_reference(
    study: Callable[..., dict[str, Any]], finished_run: Callable[..., None], tmp_path: Path
) -> None:
    claims = [
        {"id": "A", "text": "better", "arm": "many", "against": "third",
         "checks": [{"of": "final_difference", "at_least": 0.0}]},
    ]  # fmt: skip
    arms = {"few": {"change": {"cohort": 2}}, "many": {}, "third": {"change": {"cohort": 3}}}
    made = Definition.parse(study(metric="accuracy", better="higher", claims=claims, arms=arms, analyses=[]))
    grid = expand(made)
    for planned in grid:
        finished_run(planned, tmp_path, {"few": [0.9], "many": [0.5], "third": [0.4]}[planned.arm])
    result = analyse(made, grid, tmp_path)
    (verdict,) = result.verdicts
    assert verdict.arm == "many against third" and verdict.outcome == "supported"
    assert verdict.numbers["final_difference"].value == pytest.approx(0.1)
    assert result.scenarios["base"].arms["many"].estimates["final_difference"].value == pytest.approx(-0.4)
    assert "many against third" in render_study(result)


def test_the_page_escapes_and_needs_nothing_from_elsewhere(result: StudyResult) -> None:
    page = render_study(result)
    assert "&lt;b&gt;7&lt;/b&gt;" in page
    assert "http://" not in page
    assert "https://" not in page
    for words in ("not measured", "Rounds to the target", "At equal cost", "nan"):
        assert (words in page) == (words != "nan")


def test_json_holds_every_number_and_no_nan(result: StudyResult, tmp_path: Path) -> None:
    values = json.loads(write_results(result, tmp_path).read_text(encoding="utf-8"))
    arm = values["scenarios"]["base"]["arms"]["many"]
    assert arm["runs"]["5"]["rounds"] == 2.0
    assert arm["estimates"]["rounds_ratio"]["p_less"] is not None
    assert "bands" not in result.summary()["scenarios"]["base"]["arms"]["many"]


def test_a_study_without_any_run_has_a_report(study: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    made = Definition.parse(study())
    result = analyse(made, expand(made), tmp_path, failures={"base/few/seed-5": "no data\nmore"})
    page = render_study(result)
    assert "No run of this scenario has finished yet" in page
    assert "no data" in page
    console = Console(width=200, record=True, file=(tmp_path / "said").open("w", encoding="utf-8"))
    print_study(console, result, tmp_path / "study.html")
    assert "0 of 4 runs done, 1 failed" in console.export_text()
