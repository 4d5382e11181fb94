"""Numbers of a study as they are published: one small JSON file next to its page, one entry for each time it was run.

The first entry is the measurement, each later one a replication: the same seeds on another machine, or with another
instruction set. Tables and verdicts of the page are computed from this file alone (`pages`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.records import Info, JsonObject
from fedloom.reporting.example_scores import ExampleScores
from fedloom.reporting.page import write_page
from fedloom.studies.claims import Outcome, Verdict, judge
from fedloom.studies.comparison import RunNumbers, ScenarioNumbers, estimates
from fedloom.studies.definition import Definition
from fedloom.studies.held_out import pack, unpack
from fedloom.studies.results import StudyResult
from fedloom.studies.statistics import Estimate

_DIGITS = 6
"""Significant decimals of a published number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A study, or a part of it, run once."""

    command: str
    """What was typed."""
    machine: Mapping[str, str]
    """Processor, libraries, instruction set and date; see `machine.describe`."""
    scenarios: Mapping[str, ScenarioNumbers]
    ratios: tuple[str, ...] = ()
    """Numbers whose ratio to the reference's is given, too."""

    def estimates(self, definition: Definition) -> dict[str, dict[str, dict[str, Estimate]]]:
        """Return the numbers over seeds, by scenario and subject."""
        return {name: estimates(definition, self.ratios, each) for name, each in self.scenarios.items()}

    def verdicts(self, definition: Definition) -> tuple[Verdict, ...]:
        """Judge the claims about what was run."""
        measured = judge(definition, self.estimates(definition))
        return tuple(each for each in measured if each.outcome != "not measured")


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """All measurements of a study."""

    study: str
    """Its name."""
    measurements: tuple[Measurement, ...]


def measurement(result: StudyResult, ratios: Sequence[str], command: str) -> Measurement:
    """Return a study's results as a measurement; arms without runs are left out."""
    scenarios = {}
    for name, each in result.scenarios.items():
        if each.numbers is not None and any(each.numbers.arms.values()):
            arms = {arm: runs for arm, runs in each.numbers.arms.items() if runs}
            equal = {subject: pairs for subject, pairs in each.numbers.equal.items() if pairs}
            scenarios[name] = ScenarioNumbers(target=each.numbers.target, arms=arms, equal=equal)
    published = ("processor", "system", "python", "numpy", "torch", "capability", "date")
    machine = {fact: result.environment[fact] for fact in published if fact in result.environment}
    return Measurement(command=command, machine=machine, scenarios=scenarios, ratios=tuple(sorted(ratios)))


def replicated(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the verdict of several measurements of a claim: theirs if they agree, else undecided."""
    return outcomes[0] if len(set(outcomes)) == 1 else "undecided"


def read(path: Path) -> Published:
    """Read a file of `write`."""
    values: JsonObject = json.loads(path.read_text(encoding="utf-8"))
    made = tuple(
        Measurement(
            command=each["command"],
            machine=each["machine"],
            scenarios={name: _scenario(scenario) for name, scenario in each["scenarios"].items()},
            ratios=tuple(each["ratios"]),
        )
        for each in values["measurements"]
    )
    return Published(study=values["study"], measurements=made)


def write(published: Published, path: Path) -> None:
    """Write the file: one line for each number of an arm, its values in the order of the arm's seeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {
        "study": published.study,
        "measurements": [
            {
                "command": each.command,
                "machine": dict(each.machine),
                "ratios": list(each.ratios),
                "scenarios": {name: _scenario_values(scenario) for name, scenario in each.scenarios.items()},
            }
            for each in published.measurements
        ],
    }
    write_page(path, _indented(values) + "\n")


def _scenario_values(scenario: ScenarioNumbers) -> JsonObject:
    equal = {
        subject: {"seeds": list(pairs), **_columns(list(pairs.values()))} for subject, pairs in scenario.equal.items()
    }
    arms = {}
    for arm, runs in scenario.arms.items():
        arms[arm] = {
            "seeds": list(runs),
            "numbers": _columns([run.numbers for run in runs.values()]),
            "scores": {
                name: _score_values([run.scores[name] for run in runs.values()])
                for name in dict.fromkeys(name for run in runs.values() for name in run.scores)
                if all(name in run.scores for run in runs.values())
            },
        }
    return {"target": _rounded(scenario.target), "arms": arms, "equal": equal}


def _scenario(values: Info) -> ScenarioNumbers:
    arms = {}
    for arm, each in values["arms"].items():
        numbers, scores = _rows(each["numbers"], len(each["seeds"])), _scores(each["scores"], len(each["seeds"]))
        arms[arm] = {
            seed: RunNumbers(numbers=row, scores=score)
            for seed, row, score in zip(each["seeds"], numbers, scores, strict=True)
        }
    equal = {}
    for subject, each in values["equal"].items():
        columns = {name: column for name, column in each.items() if name != "seeds"}
        equal[subject] = dict(zip(each["seeds"], _rows(columns, len(each["seeds"])), strict=True))
    target = values["target"]
    return ScenarioNumbers(target=math.nan if target is None else target, arms=arms, equal=equal)


def _columns(rows: Sequence[Mapping[str, float]]) -> JsonObject:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [_rounded(row.get(name, math.nan)) for row in rows] for name in names}


def _rows(columns: Info, count: int) -> list[dict[str, float]]:
    return [{name: column[at] for name, column in columns.items() if column[at] is not None} for at in range(count)]


def _score_values(scores: Sequence[ExampleScores]) -> JsonObject:
    values = [np.array(each.values) for each in scores]
    found: JsonObject = {
        "examples": [each.examples for each in scores],
        "count": [len(each) for each in values],
        "more": [pack(each > 0) for each in values],
    }
    return {**found, "less": [pack(each < 0) for each in values]} if any((each < 0).any() for each in values) else found


def _scores(values: Info, count: int) -> list[dict[str, ExampleScores]]:
    found: list[dict[str, ExampleScores]] = [{} for _ in range(count)]
    for name, each in values.items():
        for at in range(count):
            bits = unpack(each["more"][at], each["count"][at]).astype(int)
            if "less" in each:
                bits = bits - unpack(each["less"][at], each["count"][at]).astype(int)
            found[at][name] = ExampleScores(tuple(bits.tolist()), each["examples"][at])
    return found


def _rounded(value: float) -> float | int | None:
    if not math.isfinite(value):
        return None
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short == int(short) and abs(short) < 1e15 else short


def _indented(value: object, depth: int = 0) -> str:
    """Return JSON with objects over several lines and lists on one."""
    if not isinstance(value, dict) or not value:
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            inner = ",\n".join(" " * (depth + 1) + _indented(each, depth + 1) for each in value)
            return f"[\n{inner}\n{' ' * depth}]"
        return json.dumps(value, allow_nan=False)
    lines = (f"{' ' * (depth + 1)}{json.dumps(key)}: {_indented(each, depth + 1)}" for key, each in value.items())
    return "{\n" + ",\n".join(lines) + f"\n{' ' * depth}}}"
