"""Measurements of one run: numbers, and series over its rounds or clients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from fedloom.core.history import RoundRecord
from fedloom.reporting.plugins import contributions
from fedloom.reporting.run_folder import RunFolder
from fedloom.reporting.study_part import Analysis, Measured, NumberColumn, StudyPart
from fedloom.selection._choosing.balance import divergence, imbalance
from fedloom.studies import statistics
from fedloom.studies.definition import Definition

COSTS = {"trainings": "local trainings", "uplink": "values sent up", "bytes": "bytes sent, up and down"}
"""Costs by name; each is a cumulative series of every run."""
WINDOWS = (1, 3, 5)
"""Rounds whose pools are added up before their balance is taken."""


def measure(run: RunFolder, definition: Definition, analyses: Sequence[Analysis]) -> Measured:
    """Read a run: the learning curve, its costs, and the analyses of the study."""
    measured = learning(run, definition)
    for analysis in analyses:
        measured |= analysis(run)
    return measured


def learning(run: RunFolder, definition: Definition) -> Measured:
    """Return `final` and `auc` of the study's metric, the curve, and its cost, per round and cumulative."""
    rounds = run.rounds
    curve = [(record.evaluation or {}).get(definition.metric, math.nan) for record in rounds]
    if not any(map(math.isfinite, curve)):
        return Measured(series={"metric": curve, **_costs(rounds)})
    numbers = {"final": statistics.final(curve, definition.target.last), "auc": statistics.area(curve)}
    per_round: dict[str, list[float]] = {
        "local_trainings": [record.local_trainings for record in rounds],
        "params_down": [record.traffic.params_down for record in rounds],
        "params_up": [record.traffic.params_up for record in rounds],
        "bytes_down": [record.traffic.bytes_down for record in rounds],
        "bytes_up": [record.traffic.bytes_up for record in rounds],
        "seconds": [record.timing.total_s for record in rounds],
    }
    numbers |= {name: float(np.mean(values)) for name, values in per_round.items()}
    return Measured(numbers, {"metric": curve, **_costs(rounds)})


def balance(run: RunFolder) -> Measured:
    """Measure how far the pool of each round's aggregated clients is from uniform classes.

    Pool z_c = sum over the last w rounds and their aggregated clients k of n_k q_kc, w in `WINDOWS`. `kl` is the mean
    over rounds of sum_c p_c ln(p_c C), p = z / sum z, in nats; `qcid` of sum_c (p_c - 1/C)². `kl_3` is that of w = 3.
    """
    counts = run.label_counts
    if counts is None or not run.rounds:
        return Measured()
    pools = np.array([counts[record.cohort].sum(axis=0) for record in run.rounds])
    numbers, series = {}, {}
    for window in WINDOWS:
        summed = _windowed(pools, window)
        suffix = "" if window == 1 else f"_{window}"
        for name, distance in (("kl", divergence), ("qcid", imbalance)):
            values = distance(summed)
            numbers[name + suffix] = (
                float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else math.nan
            )
            if window == 1:
                series[name] = values.tolist()
    return Measured(numbers, series)


def participation(run: RunFolder) -> Measured:
    """Measure `coverage`: the share of clients aggregated at least once; `times_aggregated`: how often each was."""
    times = np.zeros(run.population)
    for record in run.rounds:
        np.add.at(times, record.cohort, 1.0)
    return Measured({"coverage": float((times > 0).mean())}, {"times_aggregated": times.tolist()})


def own(run: RunFolder) -> Measured:
    """Return the numbers of the plug-ins' own reports (their folders' `report.py`)."""
    found = contributions(run)
    numbers = {name: float(value) for each in found for name, value in each.numbers.items()}
    return Measured(numbers, scores={name: scores for each in found for name, scores in each.scores.items()})


GENERAL = StudyPart(
    analyses={"balance": balance, "own": own, "participation": participation},
    columns=(
        NumberColumn(number="kl", title="KL to uniform", table="clients", difference=True),
        NumberColumn(number="kl_3", title="KL, 3 rounds", table="clients"),
        NumberColumn(number="kl_5", title="KL, 5 rounds", table="clients"),
        NumberColumn(number="qcid", title="QCID", digits=4, table="clients", difference=True),
        NumberColumn(number="coverage", title="clients covered", table="clients"),
    ),
    ratios=frozenset({"coverage"}),
)
"""Measurements for every study, independent of plug-ins."""


def _costs(rounds: Sequence[RoundRecord]) -> dict[str, list[float]]:
    """Return the cumulative costs after each round."""
    return {
        "trainings": _so_far(record.local_trainings for record in rounds),
        "uplink": _so_far(record.traffic.params_up for record in rounds),
        "bytes": _so_far(record.traffic.bytes_up + record.traffic.bytes_down for record in rounds),
    }


def _so_far(values: Iterable[float]) -> list[float]:
    return [float(value) for value in itertools.accumulate(values)]


def _windowed(pools: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Return each row plus the window - 1 rows before it; the first rows have fewer."""
    return np.array([pools[max(0, row - window + 1) : row + 1].sum(axis=0) for row in range(len(pools))])
