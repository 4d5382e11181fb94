"""Factors as one vector, and its largest entries as they travel: their values, and a bit for each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.records import Array, Arrays, Groups

KEPT = "kept"
"""Group of a sparse vector: `values` (k,), and `mask`, one bit for each entry, packed into bytes."""
Shapes = Mapping[str, Sequence[int]]
"""Rank r, rows o and columns i by layer."""


def flat(groups: Groups) -> Array:
    """Return all A in order, then all B, as one vector, float32."""
    parts = [array.reshape(-1) for group in (LORA_A, LORA_B) for array in groups[group].values()]
    return np.concatenate(parts).astype(np.float32)


def factors(vector: Array, shapes: Shapes) -> dict[str, dict[str, Array]]:
    """Return the factors of a vector (inverse of `flat`)."""
    groups: dict[str, dict[str, Array]] = {LORA_A: {}, LORA_B: {}}
    start = 0
    for group in groups:
        for name, (rank, out, in_) in shapes.items():
            shape = (rank, in_) if group == LORA_A else (out, rank)
            groups[group][name] = vector[start : start + shape[0] * shape[1]].reshape(shape)
            start += shape[0] * shape[1]
    return groups


def sparse(vector: Array, density: float) -> Arrays:
    """Return the ⌊density · n⌋ entries of largest magnitude; of equal ones the first."""
    mask = largest(vector, density)
    return {"values": vector[mask], "mask": np.packbits(mask)}


def largest(vector: Array, density: float) -> Array:
    """Return which entries are the ⌊density · n⌋ of largest magnitude, bool (n,); of equal ones the first."""
    mask = np.zeros(vector.size, bool)
    mask[np.argsort(-np.abs(vector), kind="stable")[: _count(vector.size, density)]] = True
    return mask


def blank(size: int, density: float) -> Arrays:
    """Zeros in the shapes of a sparse vector of `size` entries."""
    return {"values": np.zeros(_count(size, density), np.float32), "mask": np.packbits(np.zeros(size, bool))}


def dense(kept: Arrays, size: int) -> Array:
    """Return the vector of `size` entries with zeros for unsent ones, float32."""
    mask = np.unpackbits(kept["mask"], count=size).astype(bool)
    vector = np.zeros(size, np.float32)
    vector[mask] = kept["values"]
    return vector


def _count(size: int, density: float) -> int:
    """⌊density · n⌋, at least 1."""
    return max(1, int(density * size + 1e-9))
