"""Firing rates observed while a client trains: the first steps against the last ones, without an extra pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedloom.core.records import Array
from fedloom.workloads._torch.settings import TrainingSettings

FIRST, LAST = "first", "last"
"""Prefixes of the traces' names: `first/output` has the output layer's rates in the first window of steps."""


@dataclass(slots=True)
class RateTrace:
    """Mean rates by neuron over a client's first and last training steps.

    A window is one epoch of steps, or half of all steps if there are fewer than two epochs, at least one step. The
    rates are those of a model that changes from step to step, and to minibatches as they were drawn.
    """

    steps: int
    """Steps of the whole training."""
    window: int
    """Steps of each window."""
    time_steps: int
    counts: dict[str, Array] = field(default_factory=dict)
    """Spikes by neuron, summed over a window's examples and time steps."""
    seen: dict[str, int] = field(default_factory=lambda: {FIRST: 0, LAST: 0})
    """Examples of each window."""

    @classmethod
    def of(cls, num_examples: int, settings: TrainingSettings, time_steps: int) -> RateTrace:
        """Make a trace for a client's training."""
        by_epoch, steps = -(-num_examples // settings.batch_size), settings.steps_of(num_examples)
        return cls(steps, min(by_epoch, max(1, steps // 2)), time_steps)

    def add(self, step: int, spikes: Sequence[tuple[str, Array]], examples: int) -> None:
        """Add a step: its number from 0, and for each layer its spikes by neuron, summed."""
        for part, inside in ((FIRST, step < self.window), (LAST, step >= self.steps - self.window)):
            if not inside:
                continue
            self.seen[part] += examples
            for name, counts in spikes:
                key = f"{part}/{name}"
                self.counts[key] = self.counts.get(key, 0.0) + counts.astype(np.float64)

    def rates(self) -> dict[str, Array]:
        """Return rates in [0, 1], float64, by window and layer."""
        return {
            key: counts / (self.seen[key.partition("/")[0]] * self.time_steps) for key, counts in self.counts.items()
        }
