"""Greedy facility location: a few representatives for all."""

from __future__ import annotations

import numpy as np

from fedloom.selection._choosing.sampling import Floats, Indices


def facility_location(distances: Floats, size: int) -> Indices:
    """Add, `size` times, the j that leaves the smallest sum over all i of the distance to the nearest one picked.

    The objective is sum_i min_{s in S + j} D_is; its negative is submodular up to a constant, so greedy is within
    1 - 1/e of the best set (Nemhauser, Wolsey and Fisher 1978).

    Args:
        distances: D, non-negative, symmetric, zero diagonal, float64 [n, n].
        size: how many to pick, at most n.

    Returns:
        Indices in the order picked, [size]; ties take the first.
    """
    nearest = np.full(len(distances), np.inf)
    left = list(range(len(distances)))
    picked: list[int] = []
    for _ in range(size):
        costs = np.minimum(nearest[:, None], distances[:, left]).sum(axis=0)
        best = left.pop(int(costs.argmin()))
        nearest = np.minimum(nearest, distances[:, best])
        picked.append(best)
    return np.array(picked, np.intp)


def euclidean(vectors: Floats) -> Floats:
    """Pairwise distances of rows, float64 [n, n], without the cancellation of expanded squares."""
    return np.array([np.sqrt(((vectors - row) ** 2).sum(axis=1)) for row in vectors])


def cosine(vectors: Floats) -> Floats:
    """Pairwise 1 - cos of rows, float64 [n, n] in [0, 2]; two zero rows are at 0, a zero row and another at 1."""
    norms = np.sqrt((vectors**2).sum(axis=1))
    units = vectors / np.where(norms > 0, norms, 1.0)[:, None]
    apart: Floats = np.clip(1.0 - units @ units.T, 0.0, 2.0)
    apart[np.ix_(norms == 0, norms == 0)] = 0.0
    np.fill_diagonal(apart, 0.0)
    return apart
