"""The client half: a sketch of the update that preserves distances."""

from __future__ import annotations

import numpy as np

from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import Info, Record, Update
from fedloom.core.seeds import generator
from fedloom.selection._choosing.sampling import Floats
from fedloom.selection._choosing.steps import changes


def sketched(name: str, change: Floats, width: int) -> Floats:
    """Count sketch of one array: every entry is added, with a random sign, to one of `width` cells.

    Charikar, Chen, Farach-Colton 2002. The expected squared distance of two sketches is that of the arrays, its
    relative standard deviation at most sqrt(2 / width). Cells and signs depend on the array's name and size alone,
    so that all clients of all rounds share them.

    Args:
        name: the array's name.
        change: any shape, float64.
        width: cells.

    Returns:
        float64 [width].
    """
    rng = generator(0, "divfl", name)
    cells = rng.integers(width, size=change.size)
    signs = rng.choice((-1.0, 1.0), size=change.size)
    total = np.zeros(width)
    np.add.at(total, cells, signs * change.ravel())
    return total


class UpdateSketch(Measure):
    """Reports a sketch of the update that preserves distances."""

    def __call__(
        self,
        workload: object,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """Return `{"update": [...]}`: w_k - w_t in `knobs["sketch"]` floats, or whole if that is 0 or not shorter."""
        moved = list(changes(model, update, "divfl"))
        width = int(knobs["sketch"])
        if width == 0 or sum(change.size for _, change in moved) <= width:
            return {"update": np.concatenate([change.ravel() for _, change in moved]).tolist()}
        total = np.zeros(width)
        for name, change in moved:
            total += sketched(name, change, width)
        return {"update": total.tolist()}


def build_measure() -> UpdateSketch:
    """Return the measure; its setting comes with each job."""
    return UpdateSketch()
