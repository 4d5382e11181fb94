from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedloom import api
from fedloom.core.errors import ConfigError, FedloomError, UnknownName, UsageError
from fedloom.studies import definition_files
from fedloom.studies.definition import Definition
from fedloom.studies.grid import expand, overlay

Make = Callable[..., dict[str, Any]]


def test_runs_are_scenarios_by_arms_by_seeds_one_seed_after_the_other(study: Make) -> None:
    scenarios = {"a": {}, "b": {"change": {"rounds": 5}, "seeds": 1}}
    grid = expand(Definition.parse(study(scenarios=scenarios)))
    assert [run.key for run in grid] == [
        "a/few/seed-5", "a/many/seed-5", "b/few/seed-5", "b/many/seed-5", "a/few/seed-6", "a/many/seed-6",
    ]  # fmt: skip
    by_key = {run.key: run.experiment for run in grid}
    few, many, longer = by_key["a/few/seed-6"], by_key["a/many/seed-6"], by_key["b/many/seed-5"]
    assert (few.cohort, few.seed, few.rounds, few.runtime.name) == (2, 6, 3, "inline")
    assert (many.cohort, longer.rounds, longer.checkpoint.every) == (4, 5, 10)


def test_seeds_and_overrides_apply_to_every_run(study: Make) -> None:
    made = Definition.parse(study(scenarios={"a": {"seeds": 7}})).with_seeds(3)
    grid = expand(made, ["rounds=9", "cohort=3"])
    assert {run.seed for run in grid} == {5, 6, 7}
    assert {(run.experiment.rounds, run.experiment.cohort) for run in grid} == {(9, 3)}


def test_only_takes_patterns(study: Make) -> None:
    made = Definition.parse(study())
    assert {run.arm for run in expand(made, only=["base/m*"])} == {"many"}
    with pytest.raises(UsageError, match=r"--only x/\*: matches none.*'\*/few'"):
        expand(made, only=["x/*"])


def test_overlay_merges_tables_and_replaces_other_kinds() -> None:
    values = {"a": 1, "strategy": {"name": "server_opt", "beta1": 0.5}, "workload": {"partition": {"scheme": "iid"}}}
    assert overlay(values, {"strategy": {"beta2": 0.9}})["strategy"] == {
        "name": "server_opt", "beta1": 0.5, "beta2": 0.9,
    }  # fmt: skip
    assert overlay(values, {"strategy": "fedavg"})["strategy"] == {"name": "fedavg"}
    changed = overlay(values, {"workload": {"partition": {"scheme": "shards", "shards_per_client": 1}, "x": 2}})
    assert changed["workload"] == {"partition": {"scheme": "shards", "shards_per_client": 1}, "x": 2}
    assert values["workload"] == {"partition": {"scheme": "iid"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": "fwe"}, "reference: 'fwe' is not defined; did you mean 'few'"),
        ({"arms": {"a/b": {}}}, "arms: 'a/b' cannot be a folder's name"),
        ({"arms": {"few": {"chnge": {}}}}, r"arms\.few\.chnge: unknown setting.*did you mean 'arms\.few\.change'"),
        ({"scenarios": {"x": {"seeds": 0}}}, r"scenarios\.x\.seeds: .*greater than or equal to 1, got 0"),
        ({"seedz": {}}, "seedz: unknown setting.*did you mean 'seeds'"),
        ({"highlight": ["none"]}, "highlight: 'none' is not defined"),
        ({"claims": [{"id": "C", "text": "t", "arm": "x"}]}, r"claims \(C\): arm: 'x' is not defined"),
        ({"claims": [{"id": "C", "text": "t", "arm": "few", "checks": [{"of": "auc"}]}]}, "'auc' has no bound"),
        ({"tests": {"a/b": {}}}, "tests: 'a/b' cannot be a file's name"),
    ],
)
def test_wrong_definitions_are_named(study: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Definition.parse(study(**changes))


def test_a_wrong_experiment_names_its_scenario_and_arm(study: Make) -> None:
    made = Definition.parse(study(arms={"few": {}, "many": {"change": {"cohort": 60}}}))
    with pytest.raises(ConfigError, match=r"scenario 'base', arm 'many': cohort: 60 clients per round"):
        expand(made)


def test_files_extend_each_other(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study_file()
    child = tmp_path / "child.toml"
    child.write_text('extends = "little.toml"\nname = "child"\n[arms.few]\n', encoding="utf-8")
    made, left = definition_files.load(child, ["study.seeds.count=4", "rounds=2"])
    assert (made.name, list(made.arms), made.seeds.count, left) == ("child", ["few"], 4, ["rounds=2"])
    child.write_text('extends = "child.toml"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="a cycle"):
        definition_files.load(child)


def test_names_that_are_no_study() -> None:
    with pytest.raises(UnknownName, match="did you mean 'sfedca'"):
        definition_files.load("sfedka")
    with pytest.raises(ConfigError, match=r"study file 'none\.toml' not found"):
        definition_files.load("none.toml")


@pytest.mark.parametrize("name", definition_files.names())
def test_shipped_studies_are_valid(name: str) -> None:
    made, _ = definition_files.load(name)
    grid = expand(made.with_seeds(1))
    assert len(grid) == len(made.conditions) * len(made.arms)
    assert len({run.experiment.fingerprint() for run in grid}) == len(grid)


def test_the_rival_preset_differs_from_sfedca_in_its_selection_alone() -> None:
    ours, rival = api.load("digits-sfedca").to_dict(), api.load("digits-random-snn").to_dict()
    for key in ("name", "strategy", "selection"):
        del ours[key], rival[key]
    assert ours == rival


def test_seeds_of_studies_and_their_sweep_are_apart() -> None:
    used: dict[str, set[int]] = {}
    for name in ("sfedca", "sfedca-fashion-mnist", "sfedca-sweep"):
        made, _ = definition_files.load(name)
        used[name] = {seed for scenario in made.conditions for seed in made.seeds_of(scenario)}
    assert not used["sfedca"] & used["sfedca-sweep"]
    assert not used["sfedca-fashion-mnist"] & used["sfedca-sweep"]


def test_errors_are_the_projects_own(study: Make) -> None:
    with pytest.raises(FedloomError):
        Definition.parse(study(arms=[]))
