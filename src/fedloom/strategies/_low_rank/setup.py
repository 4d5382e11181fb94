"""A low-rank method's facts about its run, shared by its parts, and common operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.pinned import Pinned
from fedloom.core.records import Array, Record
from fedloom.strategies._low_rank.layers import fresh_a, zero_b
from fedloom.strategies._low_rank.state import Adapters
from fedloom.strategies._low_rank.wire import Wire

SHARED = "_low_rank"
"""Folder of the shared rule and accumulator."""
Pairs = Mapping[str, tuple[Array, Array]]
"""Factors A (r, i) and B (o, r) by layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """The numbers of a run that all parts of a method need."""

    strategy: str
    """The strategy's name, in the user's terms."""
    seed: int
    """The run's seed: the first factors A are drawn from it."""
    scale: float
    """s in W + s·B A."""
    rank_max: int
    """The largest rank of any round."""
    wire: Wire = "fp32"

    def fresh(self, state: Adapters, rank: int) -> tuple[dict[str, Array], dict[str, Array]]:
        """Make factors whose product is zero: A (rank, i) drawn from the seed, B (o, rank) zeros, by layer."""
        layers = state.shapes()
        a = fresh_a(self.seed, state.restarts, {name: (rank, layer.in_) for name, layer in layers.items()})
        return a, zero_b({name: (layer.out, rank) for name, layer in layers.items()})

    def merged(self, state: Adapters, pairs: Pairs) -> Adapters:
        """Add s·B A of each layer to the base."""
        a = {name: a for name, (a, _) in pairs.items()}
        b = {name: (b * np.float32(self.scale)).astype(np.float32) for name, (_, b) in pairs.items()}
        return state.folded(Pinned.of(Record({LORA_A: a, LORA_B: b})))
