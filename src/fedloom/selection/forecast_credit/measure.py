"""The client half: what a client's examples would teach each output, and the credit of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Measure, Shard, Workload
from fedloom.core.records import MODEL, Array, Info, Record, Update

ClassErrors = Callable[..., Array]
"""`class_errors(arrays, shard, rng)`: mean over the shard of the loss's push on each output, float64 [C] in [-1, 1]."""


def forecast_credit(
    workload: Workload, model: Record, update: Update, shard: Shard, rng: np.random.Generator, knobs: Info
) -> Info:
    """`{"gain": [C floats]}`: the forecast e_c of how local training would move output c; its norm is the credit.

    Raises:
        UsageError: the workload cannot tell.
    """
    errors: ClassErrors | None = getattr(workload, "class_errors", None)
    if errors is None:
        raise UsageError(
            f"selection 'forecast_credit' reads class errors, but workload {type(workload).__name__!r} has no "
            "class_errors. Use spiking_classification or image_classification, or another selection"
        )
    return {"gain": errors(model.groups[MODEL], shard, rng).tolist()}


def build_measure() -> Measure:
    """The measure; it has no settings."""
    return forecast_credit
