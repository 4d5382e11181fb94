"""Word errors against depth and time: curves of every criterion, and whether the criterion is informative."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedloom.core.ranks import separation, spearman
from fedloom.core.records import Array, Info
from fedloom.core.seeds import generator
from fedloom.workloads.hubert_ee.exits import (
    CRITERIA,
    ENTROPY,
    Rule,
    Table,
    bounds,
    calibrated,
    first_above,
    fit_gate,
    threshold_of,
)

_DRAWS = 2000
"""Random orders of a permutation test."""


class Read(Protocol):
    """What a model made of utterances, see `reading.Transcripts`."""

    @property
    def table(self) -> Table:
        """Return scores and errors."""

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """Return each utterance's transcript at each exit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditions:
    """What a trade-off is measured under."""

    points: int
    """Thresholds of a curve."""
    tolerance: float
    """Of calibration, see `exits.calibrated`."""
    noise_db: Array
    """Ratio of speech to noise of each utterance, (n,); NaN where unknown."""
    seconds: Array | None = None
    """CPU seconds of each utterance to each exit and without branches, (n, B + 2); None if not measured."""


def trade_off(read: Read, dev: Table, rule: Rule, places: Sequence[int], conditions: Conditions) -> Info:
    """Return the curves and tests as JSON.

    Args:
        read: of the test utterances.
        dev: of those that thresholds are chosen on.
        rule: the one in use.
        places: layers of the exits, the final head's last.
        conditions: of the measurement.
    """
    seconds, noise_db = conditions.seconds, conditions.noise_db
    table, layers = read.table, np.array(places)
    exits = rule.exits(table)
    rates = [float(each) for each in table.errors.sum(0) / max(table.words.sum(), 1.0)]
    found: dict[str, object] = {
        "criterion": rule.name,
        "threshold": rule.threshold,
        "layers": [int(each) for each in places],
        "utterances": len(table),
        "words": float(table.words.sum()),
        "wer": table.rate(exits),
        "wer_exits": rates,
        "mean_exit_layer": float(layers[exits].mean()),
        "left": [float((exits == place).mean()) for place in range(len(places))],
        "curves": _curves(table, dev, layers, conditions.points, seconds),
        "calibrated": _calibrated(table, dev, layers, conditions.tolerance, seconds),
        "oracle": _oracle(table, layers),
        "random": _random(table, exits),
        "auroc": _auroc(read),
    }
    noisy = np.isfinite(noise_db)
    if noisy.sum() > 2:
        found["noise"] = _noise(noise_db[noisy], layers[exits][noisy])
    if seconds is not None:
        found |= _time(table, exits, seconds)
    return found


def _curves(
    table: Table, dev: Table, layers: Array, points: int, seconds: Array | None
) -> dict[str, list[list[float | None]]]:
    """Return for each criterion lists of threshold, mean exit layer, word error rate, mean CPU seconds (or NaN)."""
    curves, gate = dict[str, list[list[float | None]]](), fit_gate(dev)
    for name in CRITERIA:
        plain = Rule(name, 0.0, gate)
        possible, certainties = bounds(plain.certainties(dev)), plain.certainties(table)
        chosen = (
            np.unique(np.linspace(0, len(possible) - 1, points).round().astype(int))
            if len(possible)
            else np.zeros(0, int)
        )
        lines = []
        for bound in [*(float(possible[place]) for place in chosen), math.inf]:
            exits = first_above(certainties, bound)
            taken = math.nan if seconds is None else float(seconds[np.arange(len(exits)), exits].mean())
            line = [threshold_of(name, bound, len(layers)), float(layers[exits].mean()), table.rate(exits), taken]
            lines.append([value if math.isfinite(value) else None for value in line])
        curves[name] = lines
    return curves


def _calibrated(
    table: Table, dev: Table, layers: Array, tolerance: float, seconds: Array | None
) -> dict[str, dict[str, float | None]]:
    """Return for each criterion its calibrated threshold, and depth, errors and share of CPU time saved with it."""
    found, gate = {}, fit_gate(dev)
    for name in CRITERIA:
        rule = calibrated(name, dev, tolerance, gate)
        exits = rule.exits(table)
        saved = None if seconds is None else _time(table, exits, seconds)["saved_share"]
        found[name] = {
            "threshold": rule.threshold,
            "mean_exit_layer": float(layers[exits].mean()),
            "wer": table.rate(exits),
            "saved_share": saved,
        }
    return found


def _oracle(table: Table, layers: Array) -> Info:
    """Return depth and errors of leaving at the first exit that has the fewest errors of all exits."""
    exits = table.errors.argmin(1)
    return {"mean_exit_layer": float(layers[exits].mean()), "wer": table.rate(exits)}


def _random(table: Table, exits: Array) -> Info:
    """Return the word error rate of the same exits given to utterances at random, and how often that is as low."""
    rng, rates = generator(0, "hubert_ee", "random exits"), np.zeros(_DRAWS)
    for draw in range(_DRAWS):
        rates[draw] = table.rate(rng.permutation(exits))
    return {"wer": float(rates.mean()), "p": float((1 + (rates <= table.rate(exits)).sum()) / (_DRAWS + 1))}


def _auroc(read: Read) -> list[float | None]:
    """Return for each branch the chance that -H is larger for a transcript equal to the final one than for another."""
    found: list[float | None] = []
    for branch in range(read.table.scores.shape[1]):
        same = np.array([texts[branch] == texts[-1] for texts in read.texts], bool)
        area = separation((-read.table.scores[:, branch, ENTROPY]).tolist(), same)
        found.append(area if math.isfinite(area) else None)
    return found


def _noise(noise_db: Array, layers: Array) -> Info:
    """Return Spearman's correlation of noise and exit layer, and the p-value of one this large at random, one-sided."""
    measured = spearman(-noise_db, layers)
    if not math.isfinite(measured):
        return {"spearman": None, "p": None}
    rng, at_least = generator(0, "hubert_ee", "noise"), 0
    for _ in range(_DRAWS):
        at_least += spearman(-noise_db, rng.permutation(layers)) >= measured
    return {"spearman": float(measured), "p": float((1 + at_least) / (_DRAWS + 1))}


def _time(table: Table, exits: Array, seconds: Array) -> Info:
    """Return mean CPU seconds: with early exits, at each exit, of the model without branches; and the share saved."""
    early, whole = float(seconds[np.arange(len(exits)), exits].mean()), float(seconds[:, -1].mean())
    return {
        "seconds": early,
        "seconds_exits": [float(each) for each in seconds[:, :-1].mean(0)],
        "seconds_full_depth": whole,
        "saved_share": 1.0 - early / whole,
        "wer_increase": table.rate(exits) / table.full_rate - 1.0 if table.full_rate else 0.0,
    }
