"""Randomness per image, independent of the batch it is corrupted in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedloom.core.records import Array
from fedloom.core.seeds import generator


@dataclass(frozen=True, slots=True)
class Draws:
    """Random numbers of n images: those of an image follow from seed, corruption and its row. Severities share them."""

    seed: int
    corruption: str
    rows: Array
    """Numbers of the images in their set, (n,), int64."""

    def normal(self, *shape: int) -> Array:
        """Standard normals, (n, *shape), float64."""
        return np.stack([rng.standard_normal(shape) for rng in self.generators()])

    def uniform(self, *shape: int) -> Array:
        """Draw from [0, 1), (n, *shape), float64."""
        return np.stack([rng.random(shape) for rng in self.generators()])

    def signs(self) -> Array:
        """-1 or 1, (n,), float64."""
        return np.where(self.uniform() < 0.5, -1.0, 1.0)

    def generators(self) -> list[np.random.Generator]:
        """Return a fresh generator for each image."""
        return [generator(self.seed, "corruption", self.corruption, int(row)) for row in self.rows]
