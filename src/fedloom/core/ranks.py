"""Statistics of ranks: correlation, and how well a score separates two classes. NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def ranks(values: npt.ArrayLike) -> Floats:
    """Return ranks from 1, ties sharing their mean rank; float64, same length."""
    values = np.asarray(values, np.float64)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place], np.float64)


def spearman(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Return Spearman's rho: the ranks' Pearson correlation. NaN if a side is constant or has under 2 values."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean() if len(a) else a, b - b.mean() if len(b) else b
    scale = math.sqrt(float((a**2).sum()) * float((b**2).sum()))
    return float((a * b).sum()) / scale if scale > 0 else math.nan


def separation(scores: Sequence[float], positive: npt.ArrayLike) -> float:
    """Return the area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    (R - n(n + 1)/2) / (n m) with R the rank sum of the n positives among n + m. NaN if one side is empty.
    """
    chosen = np.asarray(positive, bool)
    ours, others = int(chosen.sum()), int((~chosen).sum())
    if not ours or not others:
        return math.nan
    return float((ranks(scores)[chosen].sum() - ours * (ours + 1) / 2) / (ours * others))
