"""Evaluates a finished run: every estimator's scores on every set, and how well they predict accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fedloom.core.ranks import spearman
from fedloom.core.records import Array, Info
from fedloom.strategies.mano.monitor import fits
from fedloom.strategies.mano.monitor.score import Criterion, choose
from fedloom.strategies.mano.monitor.softrun import Branch

ESTIMATORS = {
    "mano": "MaNo",
    "conf_score": "ConfScore",
    "entropy": "Entropy",
    "agree_score": "AgreeScore",
    "atc_mc": "ATC (confidence)",
    "atc_ne": "ATC (entropy)",
    "frechet": "Frechet",
    "dispersion": "Dispersion",
    "proj_norm": "ProjNorm",
    "mde": "MDE",
    "cot": "COT",
    "cott": "COTT",
    "nuclear": "Nuclear",
}
"""Scores of the table, and their names for people."""
VARIANTS = {
    "softmax": "softmax branch",
    "taylor": "Taylor branch",
    "per_set": "printed rule, branch per set",
    "taylor_plain": "Taylor, row minimum not subtracted",
    "softmax_batches": "softmax, mean of batches",
    "taylor_batches": "Taylor, mean of batches",
    "nuclear_taylor": "Nuclear of the Taylor shares",
    **{f"softmax_p{power}": f"softmax, p = {power}" for power in (2, 3, 5, 6, 7, 8)},
    **{f"taylor_p{power}": f"Taylor, p = {power}" for power in (2, 3, 5, 6, 7, 8)},
    **{f"taylor_o{order}": f"Taylor, order {order}" for order in (3, 4, 5)},
}
"""Ablations of MaNo, and the branch on another score."""
ETAS = (0.0, 1.0, 3.0, 5.0, 7.0, 9.0)
"""The paper's sweep of the threshold."""
_FIRST = ("mild", "harsh", "style", "subpopulation")
"""Groups of sets shown before the user's own."""
_FEWEST = 3
"""Minimum number of sets for a line."""
_COLLAPSED = 0.5
"""Balance of predictions below which a warning is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """How well a score predicts accuracy over a group of sets; NaN if it is constant."""

    r2: float
    rho: float
    mae: float
    """By the 90/10 protocol; units of accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A group of sets."""

    names: tuple[str, ...]
    families: tuple[str, ...]
    accuracy: Array
    criterion: Array
    """Phi of each set."""
    balance: Array
    branches: tuple[Branch, ...]
    """The normalisation of MaNo's score of each set."""
    scores: Mapping[str, Array]
    """By estimator and variant, one per set."""

    def fit(self, score: str) -> Fit:
        """Return one score's fit over all of the group."""
        values = self.scores[score]
        return Fit(
            r2=fits.r_squared(values, self.accuracy),
            rho=abs(spearman(values, self.accuracy)),
            mae=fits.ninety_ten(values, self.accuracy),
        )

    def r2(self, values: Array) -> float:
        """R² of any score, one value per set."""
        return fits.r_squared(values, self.accuracy)

    def without(self, family: str) -> Table:
        """Return the sets of other families."""
        others = [index for index, each in enumerate(self.families) if each != family]
        return Table(
            names=tuple(self.names[index] for index in others),
            families=tuple(self.families[index] for index in others),
            accuracy=self.accuracy[others],
            criterion=self.criterion[others],
            balance=self.balance[others],
            branches=tuple(self.branches[index] for index in others),
            scores={name: values[others] for name, values in self.scores.items()},
        )

    def left_out(self, score: str) -> dict[str, float]:
        """Error on each family of the line through the others."""
        return fits.left_out(self.scores[score], self.accuracy, self.families)

    def with_eta(self, eta: float, classes: int, kind: Criterion) -> Array:
        """MaNo's score of each set by the printed rule with another threshold."""
        branches = [choose(float(phi), classes, eta=eta, kind=kind) for phi in self.criterion]
        return _by_branch(self.scores, branches)

    @property
    def collapsed(self) -> tuple[str, ...]:
        """Return the sets whose predictions fall on few classes: no confidence score is reliable there."""
        return tuple(name for name, value in zip(self.names, self.balance, strict=True) if value < _COLLAPSED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Content of a run's last round."""

    rule: Info
    """The strategy's settings for the score."""
    classes: int
    tables: Mapping[str, Table]
    """By group of sets; those with fewer than three are omitted."""
    clean: Info
    """The line of the unmodified test images."""


def read(reported: Info, classes: int) -> Evaluation:
    """Evaluate the strategy's report on the last round."""
    rule, lines = reported["rule"], reported["sets"]
    lines = sorted(lines, key=lambda line: (line["group"], line["family"], line["name"], line["severity"]))
    branches = _branches(rule, lines, classes)
    found = dict.fromkeys(line["group"] for line in lines if line["group"] != "clean")
    groups = [*(group for group in _FIRST if group in found), *(group for group in found if group not in _FIRST)]
    tables = {}
    for group in groups:
        rows = [index for index, line in enumerate(lines) if line["group"] == group]
        if len(rows) >= _FEWEST:
            tables[group] = _table([lines[row] for row in rows], [branches[row] for row in rows], rule, classes)
    return Evaluation(rule=rule, classes=classes, tables=tables, clean=_clean(lines))


def numbers(evaluation: Evaluation) -> dict[str, float]:
    """Return the numbers a study compares: `mild_r2_mano` and the like for every group, measure and estimator."""
    found: dict[str, float] = {}
    for group, table in evaluation.tables.items():
        found |= _numbers(group, table)
        if "geometric" in table.families:
            found |= _numbers(f"{group}_still", table.without("geometric"))
        found |= {f"{group}_left_out_{family}": error for family, error in table.left_out("mano").items()}
        left_out = list(table.left_out("mano").values())
        if left_out:
            found[f"{group}_left_out_worst"] = max(left_out)
        sweep = [table.r2(table.with_eta(eta, evaluation.classes, evaluation.rule["criterion"])) for eta in ETAS]
        found |= {f"{group}_r2_eta_{eta:g}": value for eta, value in zip(ETAS, sweep, strict=True)}
        found[f"{group}_range"] = float(table.accuracy.max() - table.accuracy.min())
        found[f"{group}_collapsed"] = float(len(table.collapsed))
        found[f"{group}_phi_least"], found[f"{group}_phi_greatest"] = table.criterion.min(), table.criterion.max()
        found[f"{group}_taylor_share"] = table.branches.count("taylor") / len(table.branches)
        variants = [found.get(f"{group}_r2_{name}", math.nan) for name in VARIANTS if name.startswith(("soft", "tay"))]
        found[f"{group}_best_variant_lead"] = float(np.nanmax(variants)) - found[f"{group}_r2_mano"]
    if evaluation.clean:
        found["clean_accuracy"] = float(evaluation.clean["accuracy"])
    return {name: float(value) for name, value in found.items()}


def _numbers(group: str, table: Table) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in table.scores:
        fit = table.fit(name)
        found |= {f"{group}_r2_{name}": fit.r2, f"{group}_rho_{name}": fit.rho, f"{group}_mae_{name}": fit.mae}
    for name in ESTIMATORS:
        if name != "mano" and name in table.scores:
            found[f"{group}_r2_over_{name}"] = found[f"{group}_r2_mano"] - found[f"{group}_r2_{name}"]
            found[f"{group}_mae_over_{name}"] = found[f"{group}_mae_mano"] - found[f"{group}_mae_{name}"]
    return found


def _branches(rule: Info, lines: Sequence[Info], classes: int) -> list[Branch]:
    """Return the branch of each set, by the strategy's settings."""
    kind, eta, how = rule["criterion"], float(rule["eta"]), rule["branch"]
    if how in get_args(Branch):
        return [how for _ in lines]
    phi = np.array([line["scores"]["criterion"] for line in lines])
    if how == "per_set":
        return [choose(float(value), classes, eta=eta, kind=kind) for value in phi]
    samples = np.array([line["samples"] for line in lines], np.float64)
    decisive = float(phi[0]) if how == "first" else float((phi * samples).sum() / samples.sum())
    return [choose(decisive, classes, eta=eta, kind=kind)] * len(lines)


def _table(lines: Sequence[Info], branches: list[Branch], rule: Info, classes: int) -> Table:
    names = [name for name in lines[0]["scores"] if all(name in line["scores"] for line in lines)]
    scores = {name: np.array([line["scores"][name] for line in lines], np.float64) for name in names}
    criterion = scores.pop("criterion")
    printed = [choose(float(phi), classes, eta=float(rule["eta"]), kind=rule["criterion"]) for phi in criterion]
    scores["mano"] = _by_branch(scores, branches, "" if rule["whole_set"] else "_batches")
    scores["per_set"] = _by_branch(scores, printed)
    return Table(
        names=tuple(map(_name, lines)),
        families=tuple(line["family"] for line in lines),
        accuracy=np.array([line["accuracy"] for line in lines], np.float64),
        criterion=criterion,
        balance=np.array([line["balance"] for line in lines], np.float64),
        branches=tuple(branches),
        scores=scores,
    )


def _clean(lines: Sequence[Info]) -> Info:
    """Return the line of the unmodified test images; that of all sites has the accuracy over all their images."""
    clean = [line for line in lines if line["group"] == "clean"]
    if len(clean) < 2:
        return clean[0] if clean else {}
    samples = sum(line["samples"] for line in clean)
    accuracy = sum(line["accuracy"] * line["samples"] for line in clean) / samples
    return {**clean[0], "samples": samples, "accuracy": accuracy}


def _name(line: Info) -> str:
    """Return a set's name, with its severity, and the site whose images it is made of."""
    name = f"{line['name']} {line['severity']}" if line["severity"] else str(line["name"])
    return f"{name}, site {line['site']}" if "site" in line else name


def _by_branch(scores: Mapping[str, Array], branches: Sequence[Branch], suffix: str = "") -> Array:
    soft = np.array([branch == "softmax" for branch in branches])
    chosen: Array = np.where(soft, scores[f"softmax{suffix}"], scores[f"taylor{suffix}"])
    return chosen
