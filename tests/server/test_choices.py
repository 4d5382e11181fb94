"""The log of choices, and its replay: no client, no data, the same clients."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.cli.app import main
from fedloom.core import registry
from fedloom.core.config import Experiment
from fedloom.core.errors import UsageError
from fedloom.server.rounds.choices import replay_run
from fedloom.server.store.disk_run_store import DiskRunStore

SPIKING = {
    "name": "spiking_classification",
    "partition": {"scheme": "shards", "shards_per_client": 2},
    "model": {"hidden": [8]},
    "time_steps": 2,
}


def experiment(**values: Any) -> Experiment:
    base = {"rounds": 4, "clients": 12, "cohort": 3, "strategy": "fedavg", "workload": SPIKING}
    return Experiment.parse({**base, "evaluation": {"every": 0}, "runtime": {"name": "inline"}, **values})


@pytest.mark.parametrize("name", registry.names("selection"))
def test_every_selections_choices_are_made_again_from_its_log(name: str, tmp_path: Path) -> None:
    history = api.run(experiment(selection=name), out=tmp_path / "run").history
    replayed = replay_run(tmp_path / "run")
    assert [each.cohort for each in replayed] == [tuple(record.cohort) for record in history]
    assert all(each.agrees for each in replayed)


@pytest.mark.parametrize("rule", ["shortlist-balance", "softmax"])
def test_a_choice_among_candidates_that_trained_too(rule: str, tmp_path: Path) -> None:
    chosen = experiment(cohort=2, selection={"name": "firing_credit", "candidates": 6, "rule": rule})
    history = api.run(chosen, out=tmp_path / "run").history
    replayed = replay_run(tmp_path / "run")
    assert [each.cohort for each in replayed] == [tuple(record.cohort) for record in history]
    assert all(each.agrees and len(each.choice.probed) == 6 for each in replayed)


def test_clients_that_failed_and_a_resumed_run_are_replayed(linear: Callable[..., Experiment], tmp_path: Path) -> None:
    odd = {"round": {"quorum_fraction": 0.3}, "checkpoint": {"every": 2}, "cohort": 4, "clients": 12}
    values = linear(rounds=6, selection="oort", **odd).to_dict()
    values["workload"] = {**values["workload"], "fail_clients": [1, 5]}
    api.run(Experiment.parse(values), out=tmp_path / "run")
    again = replay_run(tmp_path / "run")
    assert any(each.choice.missed for each in again) and all(each.agrees for each in again)
    store = DiskRunStore.open(tmp_path / "run")
    assert [choice.round for choice in store.choices(upto=4)] == [1, 2, 3, 4]
    assert len(store.choices()) == 4


def test_another_selection_says_what_it_would_have_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    api.run(experiment(cohort=2, selection={"name": "firing_credit", "candidates": 6, "rule": "topm"}), out=run)
    assert main(["replay", str(run)]) == 0
    assert "4 rounds, 4 as recorded; 8 of 8 clients the same" in capsys.readouterr().out
    assert main(["replay", str(run), "--set", "selection.rule=lowest"]) == 0
    assert "4 rounds, 0 as recorded; 0 of 8 clients the same" in capsys.readouterr().out


def test_a_log_that_was_tampered_with_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    api.run(experiment(selection={"name": "predicted_credit", "candidates": 6}), out=run)
    lines = (run / "choices.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "choices.jsonl").write_text(
        "\n".join([lines[0].replace('"cohort":[', '"cohort":[99,'), *lines[1:]]) + "\n", encoding="utf-8"
    )
    assert main(["replay", str(run)]) == 1
    reported = capsys.readouterr()
    assert "round 1: recorded [99, " in reported.out and "round 1 differs from its log" in reported.err
    (run / "choices.jsonl").write_text("\n".join(lines[1:]) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has no round 1"):
        replay_run(run)
    (run / "choices.jsonl").unlink()
    with pytest.raises(UsageError, match="has no choices to replay"):
        replay_run(run)
    shutil.rmtree(run)
