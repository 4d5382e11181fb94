"""A study's experiments: the definition expanded over scenarios, seeds and arms."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedloom import api
from fedloom.core.config import Experiment
from fedloom.core.errors import ConfigError, FedloomError, UsageError
from fedloom.core.kinds import SECTIONS
from fedloom.core.records import Info, JsonObject
from fedloom.studies.definition import Definition
from fedloom.studies.parts import PlannedTest, StudyParts

_KINDS = ("name", "scheme", "source")
"""Keys that say which kind a table is."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One experiment of a study."""

    scenario: str
    arm: str
    seed: int
    experiment: Experiment
    tests: tuple[PlannedTest, ...] = ()
    """Tests to run next to the run."""

    @property
    def key(self) -> str:
        """Return its folder below `runs/`, also its name for people."""
        return f"{self.scenario}/{self.arm}/seed-{self.seed}"


def expand(definition: Definition, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> list[Planned]:
    """Return all experiments, seed by seed, so that a study stopped early is balanced.

    Args:
        definition: the study.
        overrides: `KEY=VALUE` settings of every experiment, applied last.
        only: patterns of `scenario/arm` (shell wildcards); empty takes all.

    Raises:
        ConfigError: an experiment is not valid (the message names its scenario and arm), or the study names an analysis
            or a test that no plug-in defines.
        UsageError: nothing is left to run.
    """
    every = {
        (scenario, arm): _template(definition, scenario, arm, overrides)
        for scenario in definition.conditions
        for arm in definition.arms
    }
    parts = StudyParts.of(every.values())
    parts.analyses(definition)  # refuses unknown ones before anything runs
    tests = parts.tests(definition)
    templates = {at: each for at, each in every.items() if not only or _matches(f"{at[0]}/{at[1]}", only)}
    if not templates:
        raise UsageError(
            f"--only {', '.join(only)}: matches none of the scenarios ({', '.join(definition.conditions)}) and arms "
            f"({', '.join(definition.arms)}); write SCENARIO/ARM, such as '*/{definition.reference}'"
        )
    most = max(len(definition.seeds_of(scenario)) for scenario in definition.conditions)
    return [
        Planned(
            scenario,
            arm,
            seed,
            template.model_copy(update=_identity(scenario, arm, seed)),
            tuple(test for test in tests if test.in_run(scenario, arm)),
        )
        for index in range(most)
        for (scenario, arm), template in templates.items()
        if index < len(seeds := definition.seeds_of(scenario))
        for seed in [seeds[index]]
    ]


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def overlay(values: Info, change: Info) -> JsonObject:
    """Return `values` with `change` merged over it.

    Tables are merged key by key, but one of another kind (other `name`, `scheme` or `source`) replaces the existing
    one, because settings of the old kind are invalid for the new. Anything that is not a table replaces.
    """
    result = dict(values)
    for key, value in change.items():
        if key in SECTIONS and isinstance(value, str):
            value = {"name": value}
        there = result.get(key)
        if isinstance(there, Mapping) and isinstance(value, Mapping) and _same_kind(there, value):
            result[key] = overlay(there, value)
        else:
            result[key] = value
    return result


def _same_kind(there: Info, value: Info) -> bool:
    return all(there.get(kind) == value[kind] for kind in _KINDS if kind in value)


def _template(definition: Definition, scenario: str, arm: str, overrides: Sequence[str]) -> Experiment:
    """Return the experiment of a scenario and arm, without its seed."""
    condition = definition.conditions[scenario]
    values = _base(condition.base or definition.base)
    incidental = {
        "runtime": {"name": "inline"},
        "checkpoint": {"every": definition.checkpoint_every, "keep": 1},
    }
    for change in (definition.change, condition.change, definition.arms[arm].change, incidental):
        values = overlay(values, change)
    try:
        return Experiment.parse(values).override(overrides)
    except FedloomError as exc:
        raise ConfigError(f"scenario {scenario!r}, arm {arm!r}: {exc}") from exc


def _base(base: str | Info) -> JsonObject:
    """Return the base experiment with all defaults written out."""
    return (api.load(base) if isinstance(base, str) else Experiment.parse(base)).to_dict()


def _identity(scenario: str, arm: str, seed: int) -> JsonObject:
    return {"name": f"{scenario}-{arm}-seed-{seed}", "seed": seed}
