"""Distances of snapshots from their median, coordinate by coordinate, to find outliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Arrays, Info

EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, math.inf)
"""Bins of |z|."""
OUTLYING = 4.0
"""|z| from which a weight counts as an outlier; 6 in 100,000 normal values do."""
_BLOCK = 1 << 15
_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Robust distances |z| = |w^(s)_c - median_c| / (1.4826 MAD_c) of all weights of all snapshots."""

    counts: tuple[int, ...]
    """Weights in each bin of `EDGES`."""
    outlying: tuple[float, ...]
    """For each snapshot, oldest first: fraction of its weights with |z| >= OUTLYING."""
    monotone: float
    """Fraction of coordinates that move one way only over the window, for which the median is the middle snapshot's
    value."""

    def to_json(self) -> Info:
        """Return it as stored in a round's record."""
        return {"counts": list(self.counts), "outlying": list(self.outlying), "monotone": self.monotone}


def spread(snapshots: Sequence[Arrays]) -> Spread:
    """Compute the distances, in blocks. Coordinates equal in more than half of the snapshots (MAD 0) are omitted."""
    counts = np.zeros(len(EDGES) - 1, np.int64)
    outlying = np.zeros(len(snapshots))
    monotone = moving = total = 0
    for name, newest in snapshots[-1].items():
        if newest.dtype.kind in "iub":
            continue
        flat = [np.ascontiguousarray(each[name]).reshape(-1) for each in snapshots]
        for start in range(0, newest.size, _BLOCK):
            values = np.stack([each[start : start + _BLOCK] for each in flat]).astype(np.float64)
            steps = np.diff(values, axis=0)
            one_way = (steps >= 0).all(0) | (steps <= 0).all(0)
            monotone, moving = monotone + int(one_way.sum()), moving + one_way.size
            away = np.abs(values - np.median(values, axis=0))
            scale = _TO_SIGMA * np.median(away, axis=0)
            z = away[:, scale > 0] / scale[scale > 0]
            counts += np.histogram(z, EDGES)[0]
            outlying += (z >= OUTLYING).sum(1)
            total += z.shape[1]
    return Spread(tuple(counts.tolist()), tuple((outlying / max(total, 1)).tolist()), monotone / max(moving, 1))
