"""The client half: what the client's own data would teach each output of the global model; nobody trains for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Measure, Shard, Workload
from fedloom.core.records import MODEL, Array, Info, Record, Update

ClassErrors = Callable[..., Array]
"""`class_errors(arrays, shard, rng)`: mean over the shard of the loss's negative gradient at the outputs, up to a
positive constant; float64 [C] in [-1, 1]. For softmax cross-entropy it is y - softmax(z), y the one-hot label."""


def predicted_gain(
    workload: Workload, model: Record, update: Update, shard: Shard, rng: np.random.Generator, knobs: Info
) -> Info:
    """`{"gain": [C floats]}`: q_kc - E[softmax(z)_c], label shares minus predicted shares.

    Raises:
        UsageError: the workload does not tell its outputs' errors.
    """
    errors: ClassErrors | None = getattr(workload, "class_errors", None)
    if errors is None:
        raise UsageError(
            f"selection 'predicted_credit' reads the error of the model's output, but workload "
            f"{type(workload).__name__!r} has no class_errors. Use image_classification or spiking_classification, or "
            "another selection"
        )
    return {"gain": errors(model.groups[MODEL], shard, rng).tolist()}


def build_measure() -> Measure:
    """The measure; it has no settings."""
    return predicted_gain
