"""Evaluates a finished run: curves of the compared models, the robust overfitting gap, the attacks' verdicts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedloom.core.records import Info

ENSEMBLE = "ensemble"
LAST = "last"
_NORMAL_95 = 1.96
Verdicts = Mapping[str, str]
"""By attack, `1` for every point classified correctly under it and `0` for the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One model over the evaluated rounds that measured it."""

    rounds: tuple[int, ...]
    clean: tuple[float, ...]
    robust: tuple[float, ...]
    validation: tuple[float, ...]

    @property
    def best(self) -> int:
        """Index of the round most robust on validation images: the first of equals."""
        return self.validation.index(max(self.validation))

    @property
    def gap(self) -> float:
        """Robust overfitting: robust accuracy at the best round minus that at the last."""
        return self.robust[self.best] - self.robust[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Comparison of two models on the same points."""

    value: float
    """Accuracy of the first minus that of the second."""
    low: float
    """Lower end of the 95 % interval."""
    high: float
    only_first: int
    """Points that only the first classifies correctly."""
    only_second: int
    p: float
    """Two-sided exact p of McNemar's test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The rounds' records of a run of the median ensemble."""

    kind: str = "median"
    """Kind of the published ensemble."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    window: tuple[int, ...] = ()
    """Rounds of the last ensemble's snapshots."""
    spread: Info = field(default_factory=dict)
    verdicts: Mapping[str, Verdicts] = field(default_factory=dict)
    """By model."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """By attack, for all models."""

    def whole(self, model: str) -> Curve:
        """Return a model's curve from the first round on: before there are snapshots every combination is w itself."""
        own, early = self.curves[model], self.curves[ENSEMBLE]
        before = sum(number < own.rounds[0] for number in early.rounds)
        return Curve(
            rounds=early.rounds[:before] + own.rounds,
            clean=early.clean[:before] + own.clean,
            robust=early.robust[:before] + own.robust,
            validation=early.validation[:before] + own.validation,
        )

    def label(self, model: str) -> str:
        """Return a model's name for people."""
        return f"{self.kind} (published)" if model == ENSEMBLE else _LABELS.get(model, model)


_LABELS = {
    "last": "last round",
    "best": "best round (validation)",
    "mean": "mean of the snapshots (SWA)",
    "median": "median of the snapshots",
    "trimmed": "trimmed mean",
    "ema": "moving average of rounds",
    "middle": "middle snapshot",
    "first": "first snapshot (released script)",
    "seat": "moving average of steps (SEAT)",
}


def read(infos: Iterable[tuple[int, Info]]) -> Evaluation:
    """Evaluate (round, the strategy's report) pairs, evaluated rounds only."""
    points: dict[str, list[tuple[int, Mapping[str, float]]]] = {}
    reported: Info = {}
    for number, reported in infos:
        for model, rates in reported.get("rates", {}).items():
            points.setdefault(model, []).append((number, rates))
    return Evaluation(
        kind=str(reported.get("ensemble", "median")),
        curves={model: _curve(each) for model, each in points.items()},
        window=tuple(reported.get("window", ())),
        spread=reported.get("spread", {}),
        verdicts=reported.get("verdicts", {}),
        seconds=reported.get("seconds", {}),
    )


def withstood(verdicts: str) -> float:
    """Return the fraction of points still correct; NaN of none."""
    return verdicts.count("1") / len(verdicts) if verdicts else math.nan


def error(share: float, count: int) -> float:
    """Half the width of a share's 95 % interval, normal approximation of the binomial."""
    return _NORMAL_95 * math.sqrt(share * (1.0 - share) / count)


def difference(first: str, second: str) -> Difference:
    """Compare two models' verdicts on the same points, paired."""
    count = len(first)
    only_first = sum(a > b for a, b in zip(first, second, strict=True))
    only_second = sum(a < b for a, b in zip(first, second, strict=True))
    value = (only_first - only_second) / count
    half = _NORMAL_95 * math.sqrt(max(only_first + only_second - count * value**2, 0.0)) / count
    return Difference(
        value=value,
        low=value - half,
        high=value + half,
        only_first=only_first,
        only_second=only_second,
        p=_mcnemar(only_first, only_second),
    )


def numbers(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers a study compares: final rates, gaps, and the published model's lead over each other one."""
    found: dict[str, float] = {}
    for model in evaluation.curves:
        curve = evaluation.whole(model)
        found |= {f"clean_{model}": curve.clean[-1], f"robust_{model}": curve.robust[-1], f"gap_{model}": curve.gap}
    for model, verdicts in evaluation.verdicts.items():
        found |= {f"{_plain(attack)}_{model}": withstood(each) for attack, each in verdicts.items()}
    for measure in ("clean", "robust", "apgd", "autoattack", "gap"):
        found |= _leads(measure, found, [*evaluation.curves])
    if evaluation.spread:
        found["outlying"] = sum(evaluation.spread["outlying"]) / len(evaluation.spread["outlying"])
        found["monotone"] = float(evaluation.spread["monotone"])
    return found


def example_scores(evaluation: Evaluation) -> dict[str, tuple[int, ...]]:
    """Return, for each number of `numbers` that counts images under an attack, what each image contributes to it.

    1 or 0 for a model's rate; for `apgd_over_last` and the like 1, 0 or -1.
    """
    found: dict[str, tuple[int, ...]] = {}
    for model, verdicts in evaluation.verdicts.items():
        found |= {f"{_plain(attack)}_{model}": tuple(map(int, each)) for attack, each in verdicts.items()}
    for attack in ("apgd", "autoattack"):
        own = found.get(f"{attack}_{ENSEMBLE}")
        for model in evaluation.verdicts:
            other = found.get(f"{attack}_{model}")
            if own is not None and other is not None and model != ENSEMBLE:
                found[f"{attack}_over_{model}"] = tuple(a - b for a, b in zip(own, other, strict=True))
    return found


def _leads(measure: str, found: Mapping[str, float], models: Sequence[str]) -> dict[str, float]:
    """`robust_over_last` and the like: the published model's number minus another's."""
    own = found.get(f"{measure}_{ENSEMBLE}", math.nan)
    leads = {model: own - found.get(f"{measure}_{model}", math.nan) for model in models if model != ENSEMBLE}
    return {f"{measure}_over_{model}": lead for model, lead in leads.items() if math.isfinite(lead)}


def _plain(attack: str) -> str:
    return "pixels_clean" if attack == "clean" else attack.replace("-", "_")


def _curve(points: Sequence[tuple[int, Mapping[str, float]]]) -> Curve:
    rounds, rates = zip(*points, strict=True)
    columns = {name: tuple(float(each[name]) for each in rates) for name in ("clean", "robust", "validation")}
    return Curve(rounds=rounds, **columns)


def _mcnemar(first: int, second: int) -> float:
    """Return the two-sided exact p that both counts come from a fair coin."""
    total = first + second
    tail = sum(math.comb(total, k) for k in range(min(first, second) + 1)) / 2**total
    return min(1.0, float(2.0 * tail))
