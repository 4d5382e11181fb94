"""Results of a study: numbers over seeds for every scenario and arm, against the reference."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedloom.core.records import JsonObject
from fedloom.reporting.example_scores import ExampleScores
from fedloom.reporting.page import write_page
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.study_part import Measured, NumberColumn
from fedloom.studies import comparison, held_out, machine, statistics
from fedloom.studies.claims import Verdict, judge
from fedloom.studies.comparison import RunNumbers, ScenarioNumbers
from fedloom.studies.definition import Definition
from fedloom.studies.grid import Planned
from fedloom.studies.measures import COSTS, measure
from fedloom.studies.parts import StudyParts
from fedloom.studies.runner import folder_of, is_done
from fedloom.studies.static_tests import read_tests
from fedloom.studies.statistics import Estimate

RESULTS = "study.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A series over seeds: median and quartiles, one entry per round."""

    median: tuple[float, ...]
    low: tuple[float, ...]
    """25 % quantile."""
    high: tuple[float, ...]
    """75 % quantile."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmResult:
    """One arm in one scenario."""

    title: str
    runs: Mapping[int, Mapping[str, float]]
    """Each finished run's numbers, by seed."""
    estimates: Mapping[str, Estimate]
    """`NUMBER` over seeds, and against the reference `NUMBER_difference` (mean) or `NUMBER_ratio` (median)."""
    censored: int
    """Runs that never reached the target."""
    bands: Mapping[str, Band]
    times_aggregated: tuple[float, ...] = ()
    """Mean over seeds of the number of times each client was aggregated, sorted within each seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioResult:
    """All arms under one condition."""

    title: str
    target: float
    """Value of the metric to reach; NaN while the reference has no finished run."""
    arms: Mapping[str, ArmResult]
    pairs: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    """Estimates for claims that compare with another arm than the reference, by `ARM against ARM`."""
    numbers: ScenarioNumbers | None = None
    """What the estimates are made of; not in the JSON object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """The content of a report."""

    definition: Definition
    overrides: tuple[str, ...] = ()
    """Settings changed in every experiment."""
    planned: int
    done: int
    failures: Mapping[str, str] = field(default_factory=dict)
    scenarios: Mapping[str, ScenarioResult] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    seconds: float = 0.0
    """Wall-clock seconds of all finished runs, added up."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions and machine of the runs."""
    columns: tuple[NumberColumn, ...] = ()
    """Columns of the report's tables, as the study's plug-ins contribute them; not in the JSON object."""

    def to_json(self) -> JsonObject:
        """Return a JSON object; numbers that are not finite are null."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "columns"}
        values["definition"] = self.definition.model_dump(mode="json", exclude_none=True)
        values["scenarios"] = {name: dataclasses.replace(each, numbers=None) for name, each in self.scenarios.items()}
        shown: JsonObject = {name: _plain(value) for name, value in values.items()}
        for scenario in shown["scenarios"].values():
            del scenario["numbers"]
        return shown

    def summary(self) -> JsonObject:
        """Return the JSON object without series and single runs."""
        values = self.to_json()
        for scenario in values["scenarios"].values():
            for arm in scenario["arms"].values():
                del arm["bands"], arm["runs"], arm["times_aggregated"]
        return values


def analyse(
    definition: Definition,
    grid: Sequence[Planned],
    out: Path,
    *,
    failures: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> StudyResult:
    """Read every finished run of a grid and compare the arms."""
    parts = StudyParts.of({(each.scenario, each.arm): each.experiment for each in grid}.values())
    analyses, ratios = parts.analyses(definition), parts.ratios(definition)
    read: dict[str, dict[str, dict[int, Measured]]] = {}
    seconds, done, environment, machines = 0.0, 0, dict[str, str](), list[Mapping[str, str]]()
    for planned in grid:
        folder = folder_of(out, planned)
        arms = read.setdefault(planned.scenario, {}).setdefault(planned.arm, {})
        if is_done(folder):
            run = RunFolder.read(folder)
            beside = Measured(read_tests(planned.tests, folder), {}, _scores(definition, folder))
            arms[planned.seed] = measure(run, definition, analyses) | beside
            machines.append(machine.read(folder))
            seconds, done = seconds + run.seconds, done + 1
            environment = environment or dict(run.summary.environment if run.summary else {})
    scenarios = {name: _scenario(definition, name, arms, ratios) for name, arms in read.items()}
    return StudyResult(
        definition=definition,
        overrides=tuple(overrides),
        planned=len(grid),
        done=done,
        failures=dict(failures or {}),
        scenarios=scenarios,
        verdicts=judge(definition, {name: _estimates(each) for name, each in scenarios.items()}),
        seconds=seconds,
        environment=environment | machine.common(machines),
        columns=parts.columns(definition),
    )


def _scores(definition: Definition, folder: Path) -> dict[str, ExampleScores]:
    """Return which held-out examples a run's final model gets right, if the study's metric is their share.

    `final` is a mean over the last evaluated rounds; the last model's examples stand for those of all of them.
    """
    found = held_out.read(folder) if definition.metric == "accuracy" else None
    return {"final": ExampleScores(tuple(found[0].astype(int).tolist()), found[1])} if found else {}


def write_results(result: StudyResult, out: Path) -> Path:
    """Write `study.json`; returns its path."""
    return write_page(out / RESULTS, json.dumps(result.to_json(), indent=1, allow_nan=False) + "\n")


def _estimates(scenario: ScenarioResult) -> dict[str, Mapping[str, Estimate]]:
    return {**{name: arm.estimates for name, arm in scenario.arms.items()}, **scenario.pairs}


def numbers_of(definition: Definition, arms: Mapping[str, Mapping[int, Measured]]) -> ScenarioNumbers:
    """Return the numbers of a scenario's runs: what they measured, and what needs their series."""
    target = _target(definition, arms.get(definition.reference, {}))
    higher = definition.better == "higher"
    reached = {arm: {seed: _reached(run, target, higher) for seed, run in runs.items()} for arm, runs in arms.items()}
    against = {arm: definition.reference for arm in arms if arm != definition.reference}
    against |= {claim.subject: claim.against for claim in definition.claims if claim.against is not None}
    equal = {}
    for subject, other in against.items():
        runs, others = reached.get(subject.partition(" against ")[0], {}), reached.get(other, {})
        equal[subject] = {
            at: comparison.at_equal_cost(run, others[at], definition.target.last)
            for at, run in runs.items()
            if at in others
        }
    runs_of = {
        arm: {at: RunNumbers(numbers=run.numbers, scores=run.scores) for at, run in runs.items()}
        for arm, runs in reached.items()
    }
    return ScenarioNumbers(target=target, arms=runs_of, equal=equal)


def _scenario(
    definition: Definition, name: str, arms: Mapping[str, Mapping[int, Measured]], ratios: Collection[str]
) -> ScenarioResult:
    found = numbers_of(definition, arms)
    made = comparison.estimates(definition, ratios, found)
    return ScenarioResult(
        title=definition.conditions[name].title or name,
        target=found.target,
        numbers=found,
        arms={
            arm: _arm(definition.arms[arm].title or arm, runs, found.arms[arm], made[arm]) for arm, runs in arms.items()
        },
        pairs={subject: each for subject, each in made.items() if subject not in arms},
    )


def _target(definition: Definition, reference: Mapping[int, Measured]) -> float:
    """Return the value to reach: given, or a fraction of the reference's median final value."""
    if definition.target.value is not None:
        return definition.target.value
    finals = [run.numbers["final"] for run in reference.values() if "final" in run.numbers]
    return definition.target.share * float(np.median(finals)) if finals else math.nan


def _reached(run: Measured, target: float, higher: bool) -> Measured:
    """Return the run with its rounds, and costs, to the target."""
    if "final" not in run.numbers or not math.isfinite(target):
        return run
    rounds, censored = statistics.rounds_to_target(run.series["metric"], target, higher=higher)
    costs = {f"{cost}_to_target": statistics.cost_to_target(run.series[cost], rounds) for cost in COSTS}
    return run | Measured({"rounds": float(rounds), "censored": float(censored), **costs})


def _arm(
    title: str,
    runs: Mapping[int, Measured],
    found: Mapping[int, RunNumbers],
    estimates: Mapping[str, Estimate],
) -> ArmResult:
    return ArmResult(
        title=title,
        runs={at: run.numbers for at, run in found.items()},
        estimates=estimates,
        censored=int(sum(run.numbers.get("censored", 0.0) for run in found.values())),
        bands=_bands(list(runs.values())),
        times_aggregated=_sorted_times(list(runs.values())),
    )


def _bands(runs: Sequence[Measured]) -> dict[str, Band]:
    names = dict.fromkeys(name for run in runs for name in run.series if name != "times_aggregated")
    return {name: _band([run.series[name] for run in runs if name in run.series]) for name in names}


def _band(series: Sequence[Sequence[float]]) -> Band:
    """Return quartiles per round over the runs that reached it; NaN if none measured it."""
    rounds = max(map(len, series))
    padded = np.array([[*values, *[math.nan] * (rounds - len(values))] for values in series], np.float64)
    columns = [column[np.isfinite(column)] for column in padded.T]
    quartiles = np.array(
        [np.quantile(column, [0.25, 0.5, 0.75]) if len(column) else [math.nan] * 3 for column in columns]
    ).reshape(-1, 3)
    low, median, high = (tuple(map(float, row)) for row in quartiles.T)
    return Band(median=median, low=low, high=high)


def _sorted_times(runs: Sequence[Measured]) -> tuple[float, ...]:
    times = [sorted(run.series["times_aggregated"], reverse=True) for run in runs if "times_aggregated" in run.series]
    return tuple(float(value) for value in np.mean(times, axis=0)) if times else ()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
