"""From importances of tokens to mass accuracy: the share of an explanation that falls on the relevant words.

NumPy alone: server and report use these, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedloom.core.records import Array

BINS = 20
"""Bins of a histogram of mass accuracies over [0, 1]; the last includes 1."""


def word_importance(tokens: Array, words: Sequence[int | None], count: int) -> Array:
    """Aggregate importances of tokens to words.

    |a| / sum |a| over all tokens; special tokens are then dropped, and the pieces of a word added.

    Args:
        tokens: a, one signed number for each token, (t,).
        words: number of each token's word, None for a special token; t entries.
        count: number of words n.

    Returns:
        Shares of the words, (n,), float64; all 0 if the importances are.
    """
    shares = np.abs(np.asarray(tokens, np.float64))
    total = shares.sum()
    if total > 0.0:
        shares = shares / total
    found = np.zeros(count)
    for share, word in zip(shares, words, strict=True):
        if word is not None:
            found[word] += share
    return found


def mass_accuracy(importance: Array, mask: Sequence[bool]) -> float:
    """Return the relevant words' part of all importance, from 0 to 1; NaN if there is no importance or no such word.

    Args:
        importance: not negative, (n,).
        mask: whether each word is relevant, n entries.
    """
    total = float(importance.sum())
    relevant = np.asarray(mask, bool)
    if not total > 0.0 or not relevant.any():
        return math.nan
    return float(importance[relevant].sum()) / total


def histogram(values: Array) -> list[int]:
    """Count values of [0, 1] in `BINS` equal bins; NaN is not counted."""
    kept = values[np.isfinite(values)]
    places = np.minimum((kept * BINS).astype(np.int64), BINS - 1)
    return [int(count) for count in np.bincount(places, minlength=BINS)]


def median_of(counts: Sequence[float]) -> float:
    """Return the median of a histogram, values taken as evenly spread over each bin; NaN if it is empty.

    It differs from the values' own median by less than the width of a bin, 1/20, unless the middle falls into a gap.
    """
    filled = np.cumsum(np.asarray(counts, np.float64))
    total = float(filled[-1]) if len(filled) else 0.0
    if total <= 0.0:
        return math.nan
    place = int(np.searchsorted(filled, total / 2.0))
    before = float(filled[place - 1]) if place else 0.0
    return (place + (total / 2.0 - before) / float(counts[place])) / len(counts)


def relative(value: float, reference: float) -> float:
    """Return log(value / reference), the relative mass accuracy; NaN unless both are above 0."""
    return math.log(value / reference) if value > 0.0 and reference > 0.0 else math.nan
