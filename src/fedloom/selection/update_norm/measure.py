"""The client half: how far local training moved the model."""

from __future__ import annotations

import math

import numpy as np

from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import Info, Record, Update
from fedloom.selection._choosing.steps import changes


class UpdateNorm(Measure):
    """Reports how far local training moved the model."""

    def __call__(
        self,
        workload: object,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """`{"norm": ||w_k - w||_2}` over all trained floating-point arrays together, accumulated in float64."""
        squares = [float((change**2).sum()) for _, change in changes(model, update, "update_norm")]
        return {"norm": math.sqrt(math.fsum(squares))}


def build_measure() -> UpdateNorm:
    """Return the measure; it has no settings."""
    return UpdateNorm()
