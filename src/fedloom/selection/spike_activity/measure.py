"""The client half: mean firing rates of every layer after local training."""

from __future__ import annotations

import numpy as np

from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import MODEL, Info, Record, Update
from fedloom.selection.firing_credit.rates import require_rates


class SpikeActivity(Measure):
    """Reports mean firing rates of every layer after local training."""

    def __call__(
        self,
        workload: object,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """`{"activity": [...], "widths": [...]}`: rates in [0, 1], layer after layer, and how many each layer has.

        With `knobs["resolution"] == "layers"` there is one rate for each layer, its neurons' mean, and one width.
        """
        spiking = require_rates(workload, "spike_activity")
        rates = spiking.firing_rates(update.groups[MODEL], shard, rng, layers="all", per_sample=False)
        layers = [np.asarray(layer, np.float64).ravel() for layer in rates.values()]
        if knobs["resolution"] == "layers":
            layers = [np.array([layer.mean() for layer in layers])]
        return {"activity": np.concatenate(layers).tolist(), "widths": [layer.size for layer in layers]}


def build_measure() -> SpikeActivity:
    """Return the measure; its setting comes with each job."""
    return SpikeActivity()
