"""How well a score predicts accuracy over many sets: correlation, a line, and its error on unseen sets.

Scores and accuracies are one float64 per set, (n,). Errors are in units of accuracy, 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Array
from fedloom.core.seeds import generator

_DRAWS = 20
"""Times the sets are split 90 to 10."""
_FLAT = 1e-12


@dataclass(frozen=True, slots=True)
class Line:
    """accuracy = slope * score + offset, by least squares."""

    slope: float
    offset: float

    @classmethod
    def through(cls, scores: Array, accuracies: Array) -> Line:
        """Return the best line; a flat one if all scores are equal."""
        centred = scores - scores.mean()
        spread = float((centred**2).sum())
        slope = float((centred * (accuracies - accuracies.mean())).sum()) / spread if spread > _FLAT**2 else 0.0
        return cls(slope, float(accuracies.mean()) - slope * float(scores.mean()))

    def error(self, scores: Array, accuracies: Array) -> float:
        """Mean absolute error of the accuracies it predicts."""
        return float(np.abs(self.slope * scores + self.offset - accuracies).mean())


def correlation(scores: Array, accuracies: Array) -> float:
    """Return Pearson's r; NaN if either is constant."""
    a, b = scores - scores.mean(), accuracies - accuracies.mean()
    scale = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    return float((a * b).sum()) / scale if scale > _FLAT else math.nan


def r_squared(scores: Array, accuracies: Array) -> float:
    """Squared Pearson correlation, the paper's R^2: free of sign."""
    return correlation(scores, accuracies) ** 2


def ninety_ten(scores: Array, accuracies: Array) -> float:
    """Error on a tenth of the sets of the line through the others; mean over fixed random splits."""
    errors = []
    for draw in range(_DRAWS):
        order = generator(0, "mano", "ninety-ten", draw).permutation(len(scores))
        held = max(1, len(scores) // 10)
        test, fitted = order[:held], order[held:]
        errors.append(Line.through(scores[fitted], accuracies[fitted]).error(scores[test], accuracies[test]))
    return float(np.mean(errors))


def left_out(scores: Array, accuracies: Array, families: Sequence[str]) -> dict[str, float]:
    """Error on each family's sets of the line through all others, by family."""
    of = np.asarray(families)
    found = {}
    for family in dict.fromkeys(families):
        test = of == family
        if test.all():
            continue
        line = Line.through(scores[~test], accuracies[~test])
        found[family] = line.error(scores[test], accuracies[test])
    return found
