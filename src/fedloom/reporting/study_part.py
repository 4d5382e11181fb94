"""Plug-ins' contributions to studies: analyses of runs, tests next to them, and columns of the report's tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedloom.core.config import Experiment, Settings
from fedloom.reporting.example_scores import ExampleScores
from fedloom.reporting.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, as the statistics see it."""

    numbers: dict[str, float] = field(default_factory=dict)
    """Names without a dot; NaN if a number does not apply."""
    series: dict[str, list[float]] = field(default_factory=dict)
    """One entry per round; `times_aggregated` has one per client."""
    scores: dict[str, ExampleScores] = field(default_factory=dict)
    """By number, for numbers that are means over held-out examples: their sampling error is part of the intervals."""

    def __or__(self, other: Measured) -> Measured:
        return Measured(self.numbers | other.numbers, self.series | other.series, self.scores | other.scores)


Analysis = Callable[[RunFolder], Measured]
"""Reads numbers and series out of one finished run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberColumn:
    """A column for one of a run's numbers, its mean over seeds; shown if an arm of the scenario has the number."""

    number: str
    """The number's name."""
    title: str
    """The column's heading."""
    digits: int = 3
    """Decimals."""
    table: Literal["clients", "costs"] = "costs"
    """Its table: the means over aggregated clients, or the cost of a round."""
    interval: bool = False
    """Whether the 95 % interval is shown, too."""
    difference: bool = False
    """Whether a column with the difference from the reference follows."""


class StaticTest(Settings, ABC):
    """Measures something next to a run: its fields are the settings of the study's table `[tests.NAME]`."""

    arm: str
    """The arm whose runs it accompanies; its numbers are added to theirs."""
    scenarios: tuple[str, ...] = ()
    """Its scenarios; all if empty."""

    @abstractmethod
    def measure(self, experiment: Experiment) -> Mapping[str, float]:
        """Return numbers by name; those that are not finite are omitted.

        Args:
            experiment: the run's.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPart:
    """A plug-in's contribution to studies; made by `build_study()` in its folder's `study.py`."""

    analyses: Mapping[str, Analysis] = field(default_factory=dict)
    """Analyses for a study's `analyses`."""
    tests: Mapping[str, type[StaticTest]] = field(default_factory=dict)
    """Tests for a study's `tests`."""
    columns: tuple[NumberColumn, ...] = ()
    """Columns for numbers of its analyses, its tests, and its `report.py`; in order."""
    ratios: frozenset[str] = frozenset()
    """Numbers whose ratio to the reference's is reported next to their difference."""
