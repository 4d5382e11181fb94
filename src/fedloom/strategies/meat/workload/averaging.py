"""A moving average of the weights over every step, next to the model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedloom.core.records import Array, Arrays

DECAY = 0.999


class MovingAverage:
    """E <- a E + (1 - a) w after every step t = 0, 1, …, with a = min(0.999, (t + 1) / (t + 10)); buffers likewise.

    Wang and Wang 2022, "Self-Ensemble Adversarial Training for Improved Robustness" (SEAT), equation 7 and its code.

    Args:
        weights: returns the model's current arrays.
        average: E so far, its arrays copied; None begins with the weights as they are.
        steps: steps taken so far, t.
    """

    def __init__(self, weights: Callable[[], Arrays], average: Arrays | None, steps: int) -> None:
        self._weights = weights
        self.arrays: dict[str, Array] = {name: np.array(each) for name, each in (average or weights()).items()}
        self.steps = steps

    def update(self) -> None:
        """Add a step's weights to the average."""
        keep, weights = min(DECAY, (self.steps + 1) / (self.steps + 10)), self._weights()
        for name, mean in self.arrays.items():
            mean *= np.float32(keep)
            mean += np.float32(1.0 - keep) * weights[name]
        self.steps += 1
