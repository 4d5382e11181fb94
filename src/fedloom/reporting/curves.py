"""A run's metrics as curves: per round, per byte, per local training, per second."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from fedloom.reporting.run_folder import RunFolder

_FIRST = ("loss", "accuracy")
"""Metrics shown first, in this order; other accuracies come next."""
HELD_OUT = "held-out data"
TRAINING = "clients' training"


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One metric over a run. All sequences have one entry per round that measured it."""

    metric: str
    source: str
    """`HELD_OUT` or `TRAINING`."""
    rounds: tuple[float, ...]
    megabytes: tuple[float, ...]
    """Cumulative, up and down together; 10^6 bytes."""
    trainings: tuple[float, ...]
    """Cumulative local trainings, candidates that were not chosen included."""
    seconds: tuple[float, ...]
    """Cumulative wall-clock seconds of the rounds."""
    values: tuple[float, ...]


def in_order(names: Iterable[str]) -> list[str]:
    """Return metric names as they are shown: loss, accuracy, other accuracies, then the rest by the alphabet."""

    def place(name: str) -> tuple[int, str]:
        if name in _FIRST:
            return _FIRST.index(name), name
        return (len(_FIRST) if name.endswith("_accuracy") else len(_FIRST) + 1), name

    return sorted(set(names), key=place)


def metric_names(run: RunFolder) -> list[str]:
    """Return all metrics the run has measured, in training or evaluation."""
    return in_order(name for record in run.rounds for name in (*record.metrics, *(record.evaluation or {})))


def curve(run: RunFolder, metric: str, source: str) -> Curve | None:
    """Return one metric's curve; None if the run never measured it there."""
    sent = itertools.accumulate((r.traffic.bytes_up + r.traffic.bytes_down) / 1e6 for r in run.rounds)
    trained = itertools.accumulate(record.local_trainings for record in run.rounds)
    passed = itertools.accumulate(record.timing.total_s for record in run.rounds)
    points = [
        (float(record.round), megabytes, float(trainings), seconds, measured[metric])
        for record, megabytes, trainings, seconds in zip(run.rounds, sent, trained, passed, strict=True)
        if metric in (measured := (record.evaluation or {}) if source == HELD_OUT else record.metrics)
    ]
    if not points:
        return None
    rounds, megabytes, trainings, seconds, values = zip(*points, strict=True)
    return Curve(
        metric=metric,
        source=source,
        rounds=rounds,
        megabytes=megabytes,
        trainings=trainings,
        seconds=seconds,
        values=values,
    )


def curves(run: RunFolder, metric: str) -> list[Curve]:
    """Return the metric's curves on held-out data and in training, if measured."""
    return [found for source in (HELD_OUT, TRAINING) if (found := curve(run, metric, source))]
