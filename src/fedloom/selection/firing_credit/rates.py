"""Firing rates of a spiking workload, for measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Shard, Workload
from fedloom.core.records import Arrays

FiringRates = Callable[..., Mapping[str, np.ndarray]]
"""`firing_rates(arrays, shard, rng, *, layers, per_sample)`: layer name to rates in [0, 1]; the output layer is
named "output". `layers` is "output" or "all"; rates are [H] means over the shard, or [n, H] with `per_sample`.
Encoder noise comes from `rng` alone."""


def firing_rates(
    workload: Workload,
    arrays: Arrays,
    shard: Shard,
    rng: np.random.Generator,
    who: str,
    *,
    layers: str,
    per_sample: bool,
) -> Mapping[str, np.ndarray]:
    """The workload's firing rates with these arrays.

    Raises:
        UsageError: the workload has none; names it, and what would do.
    """
    rates: FiringRates | None = getattr(workload, "firing_rates", None)
    if rates is None:
        raise UsageError(
            f"selection {who!r} reads firing rates, but workload {type(workload).__name__!r} has no firing_rates. "
            "Use a spiking workload such as spiking_classification, or another selection"
        )
    return rates(arrays, shard, rng, layers=layers, per_sample=per_sample)
