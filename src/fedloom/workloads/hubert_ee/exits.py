"""Where utterances leave: rules on scores of branches, their thresholds and the learned one's weights. NumPy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Array

SCORES = ("entropy", "confidence", "entropy of symbols", "greatest entropy", "share of symbols")
"""Of a branch's frames: mean entropy; mean greatest probability; mean entropy of the frames whose likeliest symbol is
no blank; greatest entropy of a frame; share of frames whose likeliest symbol is no blank."""
ENTROPY, CONFIDENCE = 0, 1
CRITERIA = ("entropy", "confidence", "patience", "learned")
_NEVER = np.inf
_RIDGE, _STEPS = 1.0, 25


@dataclass(frozen=True, slots=True)
class Gate:
    """A logistic regression for each branch: the chance that it has no more word errors than the final head."""

    mean: Array
    """(B, F), of the branch's scores on the dev set."""
    deviation: Array
    """(B, F)."""
    weights: Array
    """(B, F + 1); the last one is the constant."""

    def chance(self, branch: int, scores: Sequence[float]) -> float:
        """Return the chance at a branch, 0 to 1."""
        x = (np.asarray(scores, np.float64) - self.mean[branch]) / self.deviation[branch]
        return float(1.0 / (1.0 + np.exp(-float(x @ self.weights[branch, :-1] + self.weights[branch, -1]))))


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of utterances at B branches and at the final head, which is the last exit."""

    scores: Array
    """(n, B, F), in the order of `SCORES`."""
    errors: Array
    """Word errors at each exit, (n, B + 1)."""
    words: Array
    """Words of the reference, (n,)."""
    agreeing: Array
    """How many branches in a row, this one included, decode the same text, (n, B)."""

    def __len__(self) -> int:
        return len(self.words)

    def rate(self, exits: Array) -> float:
        """Return the word error rate of the whole set for exits (n,), numbered from 0; B is the final head."""
        return float(np.take_along_axis(self.errors, exits[:, None], 1).sum() / max(self.words.sum(), 1.0))

    @property
    def full_rate(self) -> float:
        """Return the word error rate of the final head."""
        return float(self.errors[:, -1].sum() / max(self.words.sum(), 1.0))


@dataclass(frozen=True, slots=True)
class Rule:
    """A criterion and its threshold: an utterance leaves at the first branch whose certainty is above the bound."""

    name: str
    """One of `CRITERIA`."""
    threshold: float
    gate: Gate | None = None
    """Of the learned criterion."""

    def certainty(self, branch: int, scores: Sequence[float], agreeing: int) -> float:
        """Return a number that grows with certainty: -H, confidence, agreeing branches, or a chance."""
        match self.name:
            case "entropy":
                return -scores[ENTROPY]
            case "confidence":
                return scores[CONFIDENCE]
            case "patience":
                return float(agreeing)
            case _:
                if self.gate is None:
                    raise ValueError("the learned criterion needs its gate; fit it to a dev set")
                return self.gate.chance(branch, scores)

    @property
    def bound(self) -> float:
        """Return what a certainty must be above."""
        if self.name == "entropy":
            return -self.threshold
        return max(1.0, float(np.round(self.threshold))) - 0.5 if self.name == "patience" else self.threshold

    def leaves(self, branch: int, scores: Sequence[float], agreeing: int) -> bool:
        """Return whether an utterance leaves at a branch, from 0, with these scores."""
        return self.certainty(branch, scores, agreeing) > self.bound

    def certainties(self, table: Table) -> Array:
        """Return the certainty of each utterance at each branch, (n, B)."""
        count, branches, _ = table.scores.shape
        return np.array(
            [
                [self.certainty(b, table.scores[n, b].tolist(), int(table.agreeing[n, b])) for b in range(branches)]
                for n in range(count)
            ],
            np.float64,
        ).reshape(count, branches)

    def exits(self, table: Table) -> Array:
        """Return the exit of each utterance, (n,): the first branch it leaves at, or B."""
        return first_above(self.certainties(table), self.bound)


def first_above(certainties: Array, bound: float) -> Array:
    """Return the first branch whose certainty is above a bound, (n,); the number of branches if there is none."""
    above = certainties > bound
    return np.asarray(np.where(above.any(1), above.argmax(1), certainties.shape[1]))


def calibrated(name: str, dev: Table, tolerance: float, gate: Gate | None = None) -> Rule:
    """Return a criterion with the threshold of the earliest exits within a tolerance of the full model's errors.

    Args:
        name: one of `CRITERIA`.
        dev: utterances that nothing was trained on.
        tolerance: how much the word error rate may be above the full model's, as a share of it.
        gate: of the learned criterion.
    """
    certainties = Rule(name, 0.0, gate).certainties(dev)
    allowed = dev.full_rate * (1.0 + tolerance) + 1e-12
    best, best_depth = _NEVER, float(dev.errors.shape[1])
    for bound in bounds(certainties):
        exits = first_above(certainties, bound)
        depth = float(exits.mean())
        if depth < best_depth and dev.rate(exits) <= allowed:
            best, best_depth = float(bound), depth
    return Rule(name, threshold_of(name, best, dev.errors.shape[1]), gate)


def bounds(certainties: Array) -> Array:
    """Return bounds between the values that occur, (m,), rising; the first lets all leave."""
    values = np.unique(certainties)
    if not len(values):
        return np.zeros(0)
    return np.concatenate([[values[0] - 1.0], (values[:-1] + values[1:]) / 2.0])


def threshold_of(name: str, bound: float, exits: int) -> float:
    """Return the threshold of a criterion that has a bound; one that no utterance passes for an infinite bound."""
    if name == "entropy":
        return max(0.0, -bound) if np.isfinite(bound) else 0.0
    if name == "patience":
        return float(np.ceil(bound)) if np.isfinite(bound) else float(exits)
    return min(1.0, bound) if np.isfinite(bound) else 1.0


def fit_gate(dev: Table) -> Gate:
    """Fit the learned criterion: logistic regressions with a ridge, by Newton's method."""
    count, branches, features = dev.scores.shape
    mean, deviation = dev.scores.mean(0), dev.scores.std(0) + 1e-6
    weights = np.zeros((branches, features + 1))
    ridge = _RIDGE * np.diag([1.0] * features + [1e-3])
    for branch in range(branches):
        x = np.hstack([(dev.scores[:, branch] - mean[branch]) / deviation[branch], np.ones((count, 1))])
        y = (dev.errors[:, branch] <= dev.errors[:, -1]).astype(np.float64)
        w = weights[branch]
        for _ in range(_STEPS):
            p = 1.0 / (1.0 + np.exp(-np.clip(x @ w, -30.0, 30.0)))
            gradient = x.T @ (p - y) + ridge @ w
            hessian = (x * (p * (1.0 - p))[:, None]).T @ x + ridge
            w = w - np.linalg.solve(hessian, gradient)
        weights[branch] = w
    return Gate(mean, deviation, weights)
