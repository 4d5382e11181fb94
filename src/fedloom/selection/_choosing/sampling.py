"""Draws with given weights, without replacement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_SURE = 1.0 - 1e-12
"""An inclusion probability from here on is 1 up to rounding."""


def weighted(log_weights: Floats, size: int, rng: np.random.Generator) -> Indices:
    """Draw one after the other, each time with probability proportional to weight among those left.

    Adding Gumbel noise to the log-weights and keeping the largest is the same draw in one pass (Efraimidis and
    Spirakis 2006, their reservoir keys on a logarithmic scale).

    Args:
        log_weights: natural logarithms of the weights, float64 [n]; minus infinity is never drawn before the others.
        size: how many, at most n.
        rng: n draws are taken from it.

    Returns:
        Indices in the order drawn, [size].
    """
    return np.argsort(-(log_weights + rng.gumbel(size=len(log_weights))), kind="stable")[:size]


def systematic(inclusion: Floats, rng: np.random.Generator) -> Indices:
    """Draw a set of fixed size that contains index i with probability exactly `inclusion[i]`.

    Madow's systematic sampling over a random order: the cumulated probabilities are cut at u, u + 1, u + 2, ...

    Args:
        inclusion: probabilities in [0, 1] that add up to an integer m, float64 [n].
        rng: a permutation and one uniform number are taken from it.

    Returns:
        m indices, increasing.
    """
    sure = np.flatnonzero(inclusion >= _SURE)
    open_ = rng.permutation(np.flatnonzero(inclusion < _SURE))
    places = round(float(inclusion.sum())) - len(sure)
    offset = rng.uniform()
    if places <= 0:
        return sure
    ends = np.cumsum(inclusion[open_])
    ends *= places / ends[-1]
    ends[-1] = np.inf  # rounding must not leave the last cut outside
    picked = open_[np.searchsorted(ends, offset + np.arange(places), side="right")]
    return np.sort(np.concatenate([sure, picked]))
