"""Numbers of single runs, by seed, and their estimates over seeds: of each arm, and of arms against others.

This is all that a study's verdicts rest on, so it is what a study publishes next to its page (`published`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedloom.reporting.example_scores import ExampleScores
from fedloom.reporting.study_part import Measured
from fedloom.studies import statistics
from fedloom.studies.definition import Definition
from fedloom.studies.measures import COSTS
from fedloom.studies.statistics import Estimate

MEDIANS = ("rounds", *(f"{cost}_to_target" for cost in COSTS))
"""Numbers that may be censored: their centre is the median, and arms are compared by ratio."""
BySeed = Mapping[int, Mapping[str, float]]
"""Numbers by seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunNumbers:
    """One run."""

    numbers: Mapping[str, float]
    scores: Mapping[str, ExampleScores] = field(default_factory=dict)
    """What each held-out example contributes to a number, for numbers that are means over them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenarioNumbers:
    """All runs under one condition."""

    target: float
    """Value of the metric to reach; NaN if unknown."""
    arms: Mapping[str, Mapping[int, RunNumbers]]
    """Runs by arm and seed."""
    equal: Mapping[str, BySeed] = field(default_factory=dict)
    """Differences at equal cost by subject (`ARM` against the reference, or `ARM against ARM`), and seed."""


def estimates(
    definition: Definition, ratios: Collection[str], found: ScenarioNumbers
) -> dict[str, dict[str, Estimate]]:
    """Return every number over seeds by subject: each arm, also against the reference, and each claim's pair of arms.

    Args:
        definition: the study.
        ratios: numbers whose ratio to the reference's is given, too.
        found: the runs.
    """
    compared = functools.partial(_compared, ratios)
    reference = found.arms.get(definition.reference, {})
    made = {
        arm: compared(runs, {} if arm == definition.reference else reference, found.equal.get(arm, {}))
        for arm, runs in found.arms.items()
    }
    for claim in definition.claims:
        if claim.against is not None:
            runs, others = found.arms.get(claim.arm, {}), found.arms.get(claim.against, {})
            made[claim.subject] = compared(runs, others, found.equal.get(claim.subject, {}))
    return made


def at_equal_cost(run: Measured, other: Measured, last: int) -> dict[str, float]:
    """Return a pair's differences where both have spent the same: `auc_at_equal_COST` and `final_at_equal_COST`.

    Args:
        run: a run with its series.
        other: the run of the same seed that it is compared with.
        last: evaluated rounds whose mean is a final value.
    """
    found: dict[str, float] = {}
    if "final" not in run.numbers or "final" not in other.numbers:
        return found
    for cost in COSTS:
        series = run.series[cost], run.series["metric"], other.series[cost], other.series["metric"]
        ours, theirs = statistics.areas_at_equal_cost(*series)
        found[f"auc_at_equal_{cost}"] = ours - theirs
        ours, theirs = statistics.finals_at_equal_cost(*series, last=last)
        found[f"final_at_equal_{cost}"] = ours - theirs
    return found


def _compared(
    ratios: Collection[str], runs: Mapping[int, RunNumbers], reference: Mapping[int, RunNumbers], equal: BySeed
) -> dict[str, Estimate]:
    """Return every number over seeds, and against the runs of another arm if there are some."""
    names = dict.fromkeys(number for run in runs.values() for number in run.numbers)
    found: dict[str, Estimate | None] = {}
    pairs = [(runs[at], reference[at]) for at in runs if at in reference]
    for number in names:
        over_seeds = statistics.median_estimate if number in MEDIANS else statistics.mean_estimate
        found[number] = _sampled(over_seeds([_of(run, number) for run in runs.values()]), number, list(runs.values()))
        if not pairs:
            continue
        sides = [[_of(run, number) for run in side] for side in zip(*pairs, strict=True)]
        if number in MEDIANS or number in ratios:
            found[f"{number}_ratio"] = statistics.paired_ratio(*sides)
        if number not in MEDIANS:
            ours, theirs = [run for run, _ in pairs], [other for _, other in pairs]
            found[f"{number}_difference"] = _sampled(statistics.paired_difference(*sides), number, ours, theirs)
    for name in dict.fromkeys(name for each in equal.values() for name in each):
        apart = [each.get(name, math.nan) for each in equal.values()]
        found[f"{name}_difference"] = statistics.paired_difference(apart, [0.0] * len(apart))
    return {number: value for number, value in found.items() if value is not None}


def _of(run: RunNumbers, number: str) -> float:
    return run.numbers.get(number, math.nan)


def _sampled(
    found: Estimate | None, number: str, runs: Sequence[RunNumbers], others: Sequence[RunNumbers] | None = None
) -> Estimate | None:
    """Return the estimate with the sampling error of the examples, if all runs have scores of the number.

    Runs whose held-out examples differ from seed to seed have that error in their spread already.
    """
    sides = [runs] if others is None else [runs, others]
    scores = [[run.scores.get(number) for run in side] for side in sides]
    if found is None or not all(each is not None for side in scores for each in side):
        return found
    rows = [[each for each in side if each is not None] for side in scores]
    sets = {each.examples for side in rows for each in side}
    if len(sets) != 1:
        return found
    values = [np.array([each.values for each in side], np.float64) for side in rows]
    return statistics.with_sampling(found, values[0] - values[1] if len(values) == 2 else values[0])
