"""Runs in real worker processes: done once, resumed, refused, counted when they fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedloom.cli import main
from fedloom.core.errors import RunExists, RunFailed
from fedloom.studies import api
from fedloom.studies.definition import Definition
from fedloom.studies.grid import Planned, expand
from fedloom.studies.worker import do_run


class Listener:
    """Remembers what a study was told."""

    def __init__(self) -> None:
        self.begun: tuple[int, int, int] | None = None
        self.ended: list[tuple[str, str]] = []

    def begin(self, total: int, done: int, jobs: int) -> None:
        self.begun = (total, done, jobs)

    def round(self, run: Planned, number: int, rounds: int) -> None:
        assert 0 <= number <= rounds

    def end(self, run: Planned, ended: str, error: str, seconds: float) -> None:
        self.ended.append((run.key, ended))

    def close(self) -> None:
        pass


def test_runs_once_and_grows(study_file: Callable[..., Path], tmp_path: Path) -> None:
    path, out, first, second = study_file(), tmp_path / "out", Listener(), Listener()
    result, page = api.run(path, out=out, jobs=2, watcher=first)
    assert (result.done, result.planned, result.failures) == (4, 4, {})
    assert first.begun == (4, 0, 2)
    assert sorted(first.ended) == sorted((f"base/{arm}/seed-{s}", "done") for arm in ("few", "many") for s in (5, 6))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    # The arms share data and initial model, and differ in what they average.
    arms = result.scenarios["base"].arms
    assert arms["few"].estimates["local_trainings"].value == 2.0
    assert arms["many"].estimates["local_trainings"].value == 4.0
    before = (out / "runs/base/few/seed-5/rounds.jsonl").read_bytes()
    api.run(path, out=out, jobs=1, seeds=3, watcher=second)
    assert second.begun == (6, 4, 1)
    assert {key for key, _ in second.ended} == {"base/few/seed-7", "base/many/seed-7"}
    assert (out / "runs/base/few/seed-5/rounds.jsonl").read_bytes() == before
    with pytest.raises(RunExists, match=r"rounds was 3, is 9.*choose another --out"):
        api.run(path, out=out, overrides=["rounds=9"])


def test_a_worker_resumes_what_was_killed(study: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    planned = expand(Definition.parse(study(checkpoint_every=1)))[0]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    said: list[dict[str, Any]] = []
    assert do_run(whole, planned.experiment.to_dict(), lambda **values: said.append(values))["ended"] == "done"
    assert said[-1] == {"round": 3, "rounds": 3}
    # As a kill after round 2 leaves it: no summary, no third round, no third checkpoint.
    experiment = planned.experiment.override(["rounds=2"])
    assert do_run(cut, experiment.to_dict(), lambda **values: None)["ended"] == "done"
    (cut / "summary.json").unlink()
    shutil.copy(whole / "experiment.toml", cut / "experiment.toml")
    said.clear()
    assert do_run(cut, planned.experiment.to_dict(), lambda **values: said.append(values))["ended"] == "done"
    assert [each["round"] for each in said] == [2, 3]
    digests = [
        json.loads((folder / "summary.json").read_text(encoding="utf-8"))["model_sha256"] for folder in (whole, cut)
    ]
    assert digests[0] == digests[1]
    # A folder that was killed before it said what it is holds nothing of worth.
    (tmp_path / "bare" / "checkpoints").mkdir(parents=True)
    assert do_run(tmp_path / "bare", planned.experiment.to_dict(), lambda **values: None)["ended"] == "done"


def test_failures_do_not_stop_the_others(
    study_file: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = {
        "few": {"change": {"cohort": 2}},
        "bad": {"change": {"workload": {"fail_clients": [0, 1, 2, 3, 4, 5]}}},
        "dead": {"change": {"workload": {"die_always": True}}},
    }
    path, out, listener = study_file(arms=arms, seeds={"first": 5, "count": 1}), tmp_path / "out", Listener()
    result, page = api.run(path, out=out, jobs=1, watcher=listener)
    assert dict(listener.ended) == {
        "base/few/seed-5": "done", "base/bad/seed-5": "failed", "base/dead/seed-5": "failed",
    }  # fmt: skip
    assert "its process died (signal 9)" in result.failures["base/dead/seed-5"]
    assert "Failed runs" in page.read_text(encoding="utf-8")
    with pytest.raises(RunFailed, match="2 of 3 runs failed"):
        api.require_all(result)
    assert main(["study", str(path), "--out", str(out), "--jobs", "1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"] == 1


def test_interrupting_keeps_what_is_done_and_the_same_command_continues(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = study_file(arms={"few": {"change": {"workload": {"sleep_s": 0.02}, "rounds": 40}}}), tmp_path / "out"
    command = [sys.executable, "-m", "fedloom", "study", str(path), "--out", str(out), "--jobs", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if "1/2" in line:
                os.kill(process.pid, signal.SIGINT)
                break
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130
    assert "1 of 2 runs are finished and saved" in said
    again = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "2 runs, 1 of them already finished" in again.stdout
    assert "2 of 2 runs done" in again.stdout


def test_the_smoke_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "sfedca-smoke", "--seeds", "1", "--out", str(tmp_path / "out"), "--jobs", "1"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 runs done" in said
    values = json.loads((tmp_path / "out" / "study.json").read_text(encoding="utf-8"))
    arms = values["scenarios"]["shards-2"]["arms"]
    assert arms["shortlist-balance"]["estimates"]["local_trainings"]["value"] == 6.0
    assert arms["random"]["estimates"]["local_trainings"]["value"] == 2.0
    assert {"novelty", "kl", "coverage", "spikes", "energy_pj"} <= arms["shortlist-balance"]["estimates"].keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nonsense"], "is not a study or a TOML file"),
        (["sfedca-smoke", "--set", "study.seedz.first=1"], "seedz: unknown setting"),
        (["sfedca-smoke", "--set", "roundz=1"], "roundz: unknown setting"),
        (["sfedca-smoke", "--seeds", "0"], "0 is not in the range"),
    ],
)
def test_wrong_input_starts_nothing(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", *words]) == 2
    assert message in capsys.readouterr().err
    assert not Path("studies").exists()


@pytest.mark.slow
def test_the_low_rank_study_in_miniature(tmp_path: Path) -> None:
    result, page = api.run("sa-fedlora-smoke", out=tmp_path / "out", jobs=1)
    assert not result.failures and result.done == 12
    assert all(verdict.outcome != "not measured" for verdict in result.verdicts)
    drift = next(verdict for verdict in result.verdicts if verdict.claim == "drift")
    assert drift.outcome == "supported" and drift.arm == "drift-100 against drift-0"
    arms = result.scenarios["base"].arms
    assert 0.5 < arms["sa"].estimates["saving"].value < arms["sa"].estimates["saving_bound"].value == 0.8
    assert "against FedAvg" in page.read_text(encoding="utf-8")
