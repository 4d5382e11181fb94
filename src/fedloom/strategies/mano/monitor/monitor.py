"""The label-free accuracy monitor, the server half: pooled score, a line through labelled anchors, warnings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import get_args

import numpy as np

from fedloom.core.protocols import Monitor, MonitorReading, MonitorRequest
from fedloom.core.records import ClientReport, Info
from fedloom.strategies.mano.monitor.config import Config
from fedloom.strategies.mano.monitor.score import Sums, choose, span
from fedloom.strategies.mano.monitor.softrun import Branch

ESTIMATE = "estimated_accuracy"
"""Name of the estimate among the evaluation's metrics."""
TRUTH = "monitored_accuracy"
"""Name of the true accuracy on the estimated data, if its labels are known."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """One client's sums, read from its report."""

    client: int
    sums: Sums
    predicted: tuple[float, ...]
    accuracy: float
    """NaN if its labels are unknown."""


class LabelFreeAccuracy(Monitor):
    """Adds clients' sums up to exactly the pooled score and criterion, and estimates the accuracy from it.

    The score is MaNo's (Xie et al. 2024, arXiv 2405.18979, section 4). The estimate is ours, the regression estimator:
    the anchors' own accuracy, plus slope * (score of the others - score of the anchors). The slope is fitted by least
    squares to the anchors of the last evaluated rounds and to one point that is known beforehand: if all predictions
    are uniform, the score is 1/K, and so is the accuracy. It is never below 0.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def request(self, population: int, rng: np.random.Generator) -> MonitorRequest:
        """Return parts of held-out data; or the anchors (the first clients) and others drawn among the rest."""
        count, anchors = self._config.clients, self._config.anchors
        if self._config.data == "held_out":
            return MonitorRequest(clients=tuple(range(count)), parts=count)
        if population <= count:
            return MonitorRequest(clients=tuple(range(population)))
        drawn = anchors + rng.choice(population - anchors, size=count - anchors, replace=False)
        return MonitorRequest(clients=(*range(anchors), *map(int, np.sort(drawn))))

    def read(self, reports: Sequence[ClientReport], earlier: Sequence[Info]) -> MonitorReading:
        read = [_read(answer) for answer in reports if answer.num_examples]
        anchors = [answer for answer in read if answer.client < self._config.anchors]
        others = [answer for answer in read if answer.client >= self._config.anchors]
        if not others:
            return MonitorReading(metrics={}, info={})
        pooled = _pooled(others)
        branch = self._branch(pooled, earlier)
        info = {
            "samples": pooled.samples,
            "classes": pooled.classes,
            "criterion": pooled.criterion,
            "branch": branch,
            "softmax": pooled.score("softmax"),
            "taylor": pooled.score("taylor"),
            "balance": _balance(others),
            "clients": [_line(answer) for answer in others],
            "anchors": [_line(answer) for answer in anchors],
        }
        metrics: dict[str, float] = {}
        if anchors:
            slope = self._slope(branch, [*earlier, info], pooled.classes)
            level, own = _pooled(anchors).score(branch), _accuracy(anchors)
            metrics[ESTIMATE] = min(1.0, max(0.0, own + slope * (pooled.score(branch) - level)))
            info |= {"slope": slope, "estimate": metrics[ESTIMATE], "anchors_accuracy": own}
        truth = _accuracy(others)
        if math.isfinite(truth):
            metrics[TRUTH] = info["accuracy"] = truth
        return MonitorReading(metrics=metrics, info=info, warnings=self._warnings(info, earlier))

    def _branch(self, pooled: Sums, earlier: Sequence[Info]) -> Branch:
        if self._config.branch in get_args(Branch):
            return self._config.branch  # type: ignore[return-value]  # just checked
        if self._config.branch == "fixed" and earlier:
            kept: Branch = earlier[0]["branch"]
            return kept
        return choose(pooled.criterion, pooled.classes, eta=self._config.eta, kind=self._config.criterion)

    def _slope(self, branch: Branch, infos: Sequence[Info], classes: int) -> float:
        """Return the accuracy per score, by least squares with the point of chance."""
        lines = [line for info in infos[-self._config.memory :] for line in info["anchors"]]
        known = [(line[branch], line["accuracy"]) for line in lines if line.get("accuracy") is not None]
        points = np.array([(1.0 / classes, 1.0 / classes), *known])
        score, accuracy = (points - points.mean(axis=0)).T
        spread = float(score @ score)
        return max(0.0, float(score @ accuracy) / spread) if spread > 0 else 0.0

    def _warnings(self, info: Info, earlier: Sequence[Info]) -> Mapping[str, str]:
        """Return warnings: predictions on few classes, and clients whose score has fallen."""
        found = {}
        if info["balance"] < self._config.balance_floor:
            found["predictions are on few classes"] = (
                f"their balance is {info['balance']:.2f}, below {self._config.balance_floor:g}; a collapsed model is "
                "confident, too, so the estimate is unreliable"
            )
        low, high = span(info["classes"])
        for line in info["clients"]:
            before = [
                past[info["branch"]]
                for each in earlier[-self._config.memory :]
                for past in each["clients"]
                if past["client"] == line["client"]
            ]
            fallen = float(np.mean(before)) - line[info["branch"]] if before else 0.0
            if fallen > self._config.alarm_drop * (high - low):
                found[f"client {line['client']} has drifted"] = (
                    f"its score is {line[info['branch']]:.3f}, {fallen:.3f} below its mean of earlier rounds"
                )
        return found


def _read(report: ClientReport) -> _Answer:
    predicted = tuple(float(count) for count in report.info["predicted"])
    sums = Sums.from_json(report.info, samples=report.num_examples, classes=len(predicted))
    accuracy = report.metrics["accuracy"].value if "accuracy" in report.metrics else math.nan
    return _Answer(report.client, sums, predicted, accuracy)


def _pooled(answers: Sequence[_Answer]) -> Sums:
    return reduce(add, (answer.sums for answer in answers))


def _accuracy(answers: Sequence[_Answer]) -> float:
    """Return the accuracy over all samples; NaN if one does not know its labels."""
    samples = [answer.sums.samples for answer in answers]
    return float(np.average([answer.accuracy for answer in answers], weights=samples))


def _balance(answers: Sequence[_Answer]) -> float:
    """Return the entropy of the predicted classes over ln K: 1 if all are equally frequent, 0 for a single one."""
    counts = np.sum([answer.predicted for answer in answers], axis=0)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum() / math.log(len(counts)))


def _line(answer: _Answer) -> dict[str, float]:
    """Return a client's scores for the record; its accuracy if known."""
    found = {
        "client": answer.client,
        "samples": answer.sums.samples,
        "softmax": answer.sums.score("softmax"),
        "taylor": answer.sums.score("taylor"),
    }
    return found | ({"accuracy": answer.accuracy} if math.isfinite(answer.accuracy) else {})


def build_monitor(config: Config) -> LabelFreeAccuracy:
    """Return the server half a `Config` describes."""
    return LabelFreeAccuracy(config)
