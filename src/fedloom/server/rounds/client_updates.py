"""What a client has changed in a round, as it is stored for those who may have to undo it."""

from __future__ import annotations

import numpy as np

from fedloom.core.accumulators import RunningMean
from fedloom.core.records import MODEL, Array, Record


def changes(total: Record, sent: Record, num_examples: int) -> Record | None:
    """Return the update of one client minus the model it was sent, in the model's dtypes.

    Args:
        total: the record of a `RunningMean` with that client's update alone.
        sent: the input `model` of the exchange.
        num_examples: that the client used.

    Returns:
        None if the update is of other arrays than the model sent.
    """
    mean = RunningMean.from_record(total)
    model = sent.groups.get(MODEL, {})
    if not mean.weight > 0:
        return None
    trained = mean.value().get(MODEL, {})
    if trained.keys() != model.keys() or any(trained[name].shape != model[name].shape for name in model):
        return None
    differences = {name: _difference(trained[name], model[name]) for name in model}
    return Record({MODEL: differences}, {"num_examples": num_examples})


def _difference(trained: Array, sent: Array) -> Array:
    if sent.dtype.kind == "b":
        return np.logical_xor(trained, sent)
    return np.asarray(np.subtract(trained, sent, dtype=sent.dtype))
