"""Firing rates of a spiking workload, for measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

from fedloom.core.protocols import Shard, require
from fedloom.core.records import Array, Arrays

Layers = Literal["output", "all"]
Sh_contra = TypeVar("Sh_contra", bound=Shard, contravariant=True)


@runtime_checkable
class HasFiringRates(Protocol[Sh_contra]):
    """A spiking workload."""

    def firing_rates(
        self,
        arrays: Arrays,
        shard: Sh_contra,
        rng: np.random.Generator,
        *,
        layers: Layers = "output",
        per_sample: bool = False,
    ) -> Mapping[str, Array]:
        """Return rates in [0, 1] by layer, the output layer as "output"; encoder noise comes from `rng` alone.

        Rates are [H] means over the shard, or [n, H] with `per_sample`.
        """


@runtime_checkable
class HasGroupFiringRates(Protocol[Sh_contra]):
    """A spiking workload that can measure many models together."""

    def firing_rates_group(
        self,
        models: Sequence[Arrays],
        shards: Sequence[Sh_contra],
        rngs: Sequence[np.random.Generator],
        *,
        layers: Layers = "output",
        per_sample: bool = False,
    ) -> Sequence[Mapping[str, Array]]:
        """Return `firing_rates` of each model on its own shard."""


def require_rates(workload: object, selection: str) -> HasFiringRates[Shard]:
    """Return the workload as a spiking one.

    Raises:
        UnsupportedFeature: it has no firing rates; the message names the selection.
    """
    hint = "use a spiking workload such as spiking_classification"
    return require(workload, HasFiringRates, f"selection {selection!r}", hint)
