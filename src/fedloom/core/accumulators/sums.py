"""Sums of arrays: their dtypes, scaling into them, finiteness."""

from __future__ import annotations

import math

import numpy as np

from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, DType, Groups

_BLOCK = 1 << 18
"""Elements handled at a time when scaling into a sum: the scratch stays in a core's cache."""


def not_finite(client: int, group: str, name: str) -> BadUpdate:
    """Return the error for an update that contains NaN or infinity."""
    return BadUpdate(
        f"client {client}: array {name!r} of group {group!r} is not finite (NaN or infinity). Training diverged there; "
        "try a smaller learning rate or gradient clipping. Nothing of this update was aggregated"
    )


def sum_dtype(dtype: DType) -> DType:
    """Return the dtype of a sum of `dtype`: float32 for short floats and int8, float64 for other integers."""
    if dtype.kind in "iub":
        return np.dtype(np.float32 if dtype.itemsize == 1 else np.float64)
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def scaled_add(total: Array, values: Array, weight: float, *, first: bool = False) -> bool:
    """Add weighted values: total += weight * values (total = weight * values if `first`), in cache-sized blocks.

    Returns:
        Whether every product was finite; the check reads the block while it is still in the cache.
    """
    scale = total.dtype.type(weight)
    if total.size <= _BLOCK:
        product = total if first else np.empty(total.shape, total.dtype)
        np.multiply(values, scale, out=product, casting="unsafe")
        if not first:
            np.add(total, product, out=total)
        return is_finite(product)
    flat, addend = total.reshape(-1), np.ascontiguousarray(values).reshape(-1)
    scratch = np.empty(0 if first else _BLOCK, total.dtype)
    finite = True
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        product = part if first else scratch[: part.size]
        np.multiply(addend[start : start + _BLOCK], scale, out=product, casting="unsafe")
        finite = finite and is_finite(product)
        if not first:
            np.add(part, product, out=part)
    return finite


def is_finite(values: Array) -> bool:
    """Return whether a float array has no NaN and no infinity.

    A finite sum of squares shows it in one pass; only if that sum is not finite is each element examined.
    """
    if values.dtype.kind in "iub":
        return True
    flat = values.reshape(-1)
    squares = float(np.vdot(flat, flat))  # unlike `dot` it warns of no overflow, so it needs no `errstate`
    return math.isfinite(squares) or bool(np.isfinite(flat).all())


def empty_like(groups: Groups) -> dict[str, dict[str, Array]]:
    """Return uninitialised arrays of the same shapes and dtypes."""
    return {g: {n: np.empty(array.shape, array.dtype) for n, array in arrays.items()} for g, arrays in groups.items()}
