"""States as long as the population, when clients join."""

from __future__ import annotations

import numpy as np

from fedloom.core.records import Array


def extended(values: Array, population: int, fill: float) -> Array:
    """Return the values with an entry for each client that joined.

    Args:
        values: an entry per client, [n, ...], n <= population.
        population: clients there are now.
        fill: initial value of a client that joins.

    Returns:
        A new array [population, ...] of the same dtype.
    """
    rest = np.full((population - len(values), *values.shape[1:]), fill, values.dtype)
    return np.concatenate([values, rest])
