"""Changes of the model by local training, for measures of trained candidates."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.records import MODEL, Record, Update
from fedloom.selection._choosing.sampling import Floats


def changes(model: Record, update: Update, who: str) -> Iterator[tuple[str, Floats]]:
    """Yield name and local change w_k - w of every trained floating-point array, float64, one at a time.

    Raises:
        UsageError: the update has no array of the global model, so its change is undefined.
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
