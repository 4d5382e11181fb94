"""How far local training moved the model: what measures of trained candidates read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.records import MODEL, Record, Update
from fedloom.selection._choosing.sampling import Floats


def changes(model: Record, update: Update, who: str) -> Iterator[tuple[str, Floats]]:
    """Name and local change w_k - w of every trained floating-point array, float64, one at a time.

    Raises:
        UsageError: the update holds no array of the global model, so it has no change to speak of.
    """
    before, after = model.groups.get(MODEL, {}), update.groups.get(MODEL, {})
    shared = [
        name
        for name, array in before.items()
        if name in after and after[name].shape == array.shape and array.dtype.kind not in "iub"
    ]
    if not shared:
        raise UsageError(
            f"selection {who!r} compares the trained model with the global one, but the update has arrays "
            f"{sorted(after)} and the global model {sorted(before)}. Use a strategy whose clients train the whole model"
        )
    for name in shared:
        yield name, after[name].astype(np.float64) - before[name].astype(np.float64)
