"""The client half: firing rates before and after local training, and the credit of their difference."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedloom.core.protocols import Measure, Shard, Workload
from fedloom.core.records import MODEL, Info, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection.firing_credit.rates import firing_rates
from fedloom.selection.firing_credit.rules import Norm, bound, credits


def firing_credit(
    workload: Workload, model: Record, update: Update, shard: Shard, rng: np.random.Generator, knobs: Info
) -> Info:
    """`{"credit": float, "gain": [C floats]}`; the gain only where `knobs["gain"]` asks for it.

    Δ is the trained model's mean rates minus the global model's, on all of the client's samples, both with the same
    encoder noise. The gain is Δ of the output layer, the credit its norm `knobs["norm"]`, or the mean over layers
    (`layered`) where `knobs["layers"]` is "all".

    Raises:
        UsageError: the workload has no firing rates.
    """
    norm: Norm = knobs["norm"]
    seed = int(rng.integers(2**63))

    def rates(record: Record | Update) -> Mapping[str, np.ndarray]:
        return firing_rates(
            workload,
            record.groups[MODEL],
            shard,
            generator(seed, "encoder"),  # a stream of its own for each pass, and the same one
            "firing_credit",
            layers=knobs["layers"],
            per_sample=norm == "per_sample",
        )

    before, after = rates(model), rates(update)
    info = {"credit": layered(before, after, norm)}
    if knobs["gain"]:
        change = np.asarray(after["output"], np.float64) - np.asarray(before["output"], np.float64)
        info["gain"] = (change.mean(axis=0) if norm == "per_sample" else change).tolist()
    return info


def layered(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], norm: Norm) -> float:
    """The mean credit over layers, each scaled as if it were as wide as the output.

    With the output layer alone this is its credit. The scale, bound(C) / bound(H), keeps a wide hidden layer from
    drowning the others and the result within the output layer's bound; it is ours.

    Args:
        before: rates by layer, one of them "output"; [H] or, per sample, [n, H].
        after: the same layers, same shapes.
        norm: see `rules.credits`.
    """
    width = before["output"].shape[-1]
    scaled = [
        credits(rates, after[name], norm) * bound(norm, width) / bound(norm, rates.shape[-1])
        for name, rates in before.items()
    ]
    return float(np.mean(scaled))


def build_measure() -> Measure:
    """The measure; its settings come with each job."""
    return firing_credit
