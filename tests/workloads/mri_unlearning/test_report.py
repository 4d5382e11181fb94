"""The report: a table of all models, and a warning where there is nothing to unlearn."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mdreg")

from support_mri import PLAIN, experiment

from fedloom import api
from fedloom.reporting.plugins import contributions
from fedloom.reporting.report import render_report
from fedloom.reporting.run_folder import RunFolder
from fedloom.workloads.mri_unlearning.report import build_report, derived


def test_the_report_has_a_line_for_each_model_and_says_if_the_gap_is_small(tmp_path: Path) -> None:
    result = api.run(experiment({"procedures": ["ft", "nl_ft"]}), out=tmp_path / "run")
    folder = RunFolder.read(tmp_path / "run")
    found = build_report(folder)
    lines = {row[0]: row for row in found.tables[0].rows}
    assert list(lines) == ["zero-filled", "original", "oracle (retrained without)", "FT", "NL-FT"]
    last = result.history[-1].evaluation or {}
    assert lines["NL-FT"][1] == f"{last['bta_db']:.2f}" and lines["FT"][3] == f"{last['kta_db_ft']:.2f}"
    assert found.numbers["gap_db"] == pytest.approx(last["kta_db_original"] - last["kta_db_oracle"])
    assert found.numbers["gap_db"] < 1.0 and "too little more for unlearning to be judged" in render_report(folder)
    assert any("bta_db_oracle" in each.numbers for each in contributions(folder))


def test_a_run_of_one_model_has_one_line_and_no_gap(tmp_path: Path) -> None:
    api.run(experiment({**PLAIN}), out=tmp_path / "run")
    folder = RunFolder.read(tmp_path / "run")
    assert [row[0] for row in build_report(folder).tables[0].rows] == ["zero-filled", "original"]
    assert "to be judged" not in render_report(folder)


def test_what_is_claimed_of_a_procedure_is_derived_from_the_metrics() -> None:
    known = {"kta_db": 24.0, "kta_db_original": 27.0, "kta_db_oracle": 25.0, "bta_db": 29.5, "bta_db_original": 30.0}
    known |= {"membership": 0.45, "membership_original": 0.8, "membership_oracle": 0.5, "ks": 0.2, "ks_original": 0.6}
    found = derived({**known, "invented": 0.66, "invented_original": 0.6})
    wanted = {"gap_db": 2.0, "gap_left": 0.5, "kta_lost_db": 3.0, "bta_lost_db": 0.5, "invented_more": 0.1}
    wanted |= {"membership_nearer": 0.25, "ks_nearer": 0.4}
    assert {name: pytest.approx(found[name]) for name in wanted} == wanted
    assert found["oracle_gain_db"] != found["oracle_gain_db"]  # not known: NaN
    assert derived({})["gap_left"] != derived({})["gap_left"]
