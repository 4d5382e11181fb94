"""The client half: the mean error of the global model's output on the client's own data; no training is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Measure, Shard, Workload
from fedloom.core.records import Array, Info, Record, Update

OutputError = Callable[[Record, Shard], Array]
"""`output_error(model, shard)`: mean over the shard of softmax(z) - y, with z the output and y the one-hot label;
float64 [C], adding up to 0."""


def predicted_gain(
    workload: Workload, model: Record, update: Update, shard: Shard, rng: np.random.Generator, knobs: Info
) -> Info:
    """`{"gain": [C floats]}`: q_kc - E[softmax(z)_c], label shares minus predicted shares.

    Raises:
        UsageError: the workload does not tell its output's error.
    """
    error: OutputError | None = getattr(workload, "output_error", None)
    if error is None:
        raise UsageError(
            f"selection 'predicted_credit' reads the error of the model's output, but workload "
            f"{type(workload).__name__!r} has no output_error. Use image_classification or spiking_classification, or "
            "another selection"
        )
    return {"gain": (-np.asarray(error(model, shard), np.float64)).tolist()}


def build_measure() -> Measure:
    """The measure; it has no settings."""
    return predicted_gain
