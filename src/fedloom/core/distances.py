"""L2 lengths and distances of models, over all their arrays of floats together, in float64."""

from __future__ import annotations

import numpy as np

from fedloom.core.records import Array, Arrays


def length(arrays: Arrays) -> float:
    """Return sqrt(sum of squares) of arrays of any shapes; integers and booleans, such as counters, are left out."""
    return float(np.sqrt(sum(_squares(array.astype(np.float64)) for array in arrays.values() if _is_float(array))))


def distance(left: Arrays, right: Arrays) -> float:
    """Return the length of the difference of two models with equal names and shapes; integers are left out."""
    return float(
        np.sqrt(
            sum(
                _squares(array.astype(np.float64) - right[name].astype(np.float64))
                for name, array in left.items()
                if _is_float(array)
            )
        )
    )


def _is_float(array: Array) -> bool:
    return array.dtype.kind not in "iub"


def _squares(values: Array) -> float:
    return float(np.square(values).sum())
