"""What is read out of one run: numbers, and series over its rounds or clients."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedloom.core.history import RoundRecord
from fedloom.reporting.plugins import contributions
from fedloom.reporting.run_folder import RunFolder
from fedloom.selection._choosing.balance import divergence, imbalance
from fedloom.studies import statistics
from fedloom.studies.definition import Definition

COSTS = {"trainings": "local trainings", "uplink": "values sent up", "bytes": "bytes sent, up and down"}
"""What rounds are exchanged for, by name; each is a cumulative series of every run."""
WINDOWS = (1, 3, 5)
"""Rounds whose pools are added up before their balance is taken."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run, as the statistics see it."""

    numbers: dict[str, float] = field(default_factory=dict)
    """NaN where a number does not apply."""
    series: dict[str, list[float]] = field(default_factory=dict)
    """One entry per round; `times_aggregated` has one per client."""

    def __or__(self, other: Measured) -> Measured:
        return Measured(self.numbers | other.numbers, self.series | other.series)


def measure(run: RunFolder, definition: Definition) -> Measured:
    """The learning curve, its costs, and the analyses the study asks for."""
    measured = learning(run, definition)
    for name in definition.analyses:
        measured |= ANALYSES[name](run)
    return measured


def learning(run: RunFolder, definition: Definition) -> Measured:
    """`final` and `auc` of the study's metric, the curve, and what it has cost, per round and so far."""
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
    """How far the pool of each round's aggregated clients is from uniform classes.

    Pool z_c = sum over the last w rounds and their aggregated clients k of n_k q_kc, w in `WINDOWS`. `kl` is the mean
    over rounds of sum_c p_c ln(p_c C), p = z / sum z, in nats; `qcid` of sum_c (p_c - 1/C)². `kl_3` is that of w = 3.
    """
    counts = _label_counts(run)
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


def novelty(run: RunFolder) -> Measured:
    """Whether credits follow what is new: the mean over rounds of Spearman(kappa_k, TV(q_k, p)) over the candidates.

    kappa_k is the credit candidate k reported, q_k its label shares, p those of the pool of the clients aggregated in
    the round before. Rounds whose credits (or distances) are all equal have no rank correlation and are left out.
    """
    counts = _label_counts(run)
    if counts is None:
        return Measured()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    values = [math.nan]
    for before, record in itertools.pairwise(run.rounds):
        credits = _credits(record)
        pool = counts[before.cohort].sum(axis=0)
        apart = statistics.total_variation(shares[list(credits)], pool / max(pool.sum(), 1.0))
        values.append(statistics.spearman(list(credits.values()), apart) if len(credits) > 1 else math.nan)
    seen = [value for value in values if math.isfinite(value)]
    return Measured({"novelty": float(np.mean(seen)) if seen else math.nan}, {"novelty": values})


def participation(run: RunFolder) -> Measured:
    """`coverage`: the share of clients aggregated at least once; `times_aggregated`: how often each was."""
    times = np.zeros(run.population)
    for record in run.rounds:
        np.add.at(times, record.cohort, 1.0)
    return Measured({"coverage": float((times > 0).mean())}, {"times_aggregated": times.tolist()})


def spiking(run: RunFolder) -> Measured:
    """Activity on held-out data: rates and spikes and estimated energy per example, and rounds with a dead layer.

    `dead_rounds` counts rounds in which some layer's mean rate lay below the workload's floor.
    """
    evaluations = [record.evaluation or {} for record in run.rounds]
    numbers, series = {}, {}
    for name in ("spikes", "energy_pj", "rate/output"):
        values = [evaluation.get(name, math.nan) for evaluation in evaluations]
        if any(map(math.isfinite, values)):
            label = name.replace("rate/output", "output_rate")
            numbers[label] = float(np.nanmean(values))
            series[label] = values
    if any("dead" in evaluation for evaluation in evaluations):
        numbers["dead_rounds"] = float(sum(evaluation.get("dead", 0.0) > 0 for evaluation in evaluations))
    return Measured(numbers, series)


def own(run: RunFolder) -> Measured:
    """What the run's strategy and workload read out of it themselves (their folders' `report.py`)."""
    numbers = [contribution.numbers for contribution in contributions(run)]
    return Measured({name: float(value) for each in numbers for name, value in each.items()})


ANALYSES: dict[str, Callable[[RunFolder], Measured]] = {
    "balance": balance,
    "novelty": novelty,
    "own": own,
    "participation": participation,
    "spiking": spiking,
}
"""What a definition's `analyses` may name."""


def _costs(rounds: Sequence[RoundRecord]) -> dict[str, list[float]]:
    """What has been spent after each round."""
    return {
        "trainings": _so_far(record.local_trainings for record in rounds),
        "uplink": _so_far(record.traffic.params_up for record in rounds),
        "bytes": _so_far(record.traffic.bytes_up + record.traffic.bytes_down for record in rounds),
    }


def _so_far(values: Iterable[float]) -> list[float]:
    return [float(value) for value in itertools.accumulate(values)]


def _windowed(pools: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Each row plus the window - 1 rows before it; the first rows have fewer."""
    return np.array([pools[max(0, row - window + 1) : row + 1].sum(axis=0) for row in range(len(pools))])


def _label_counts(run: RunFolder) -> npt.NDArray[np.float64] | None:
    """Examples by client and class; None where the workload does not say."""
    counts = run.workload.label_counts if run.workload else ()
    return np.asarray(counts, np.float64) if len(counts) else None


def _credits(record: RoundRecord) -> dict[int, float]:
    """What candidates claimed, by client; empty where they reported no credit."""
    found = {int(client): told.get("credit") for client, told in record.probe.items()}
    return {client: float(value) for client, value in found.items() if isinstance(value, int | float)}
