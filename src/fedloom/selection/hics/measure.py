"""The client half: how local training changed the output layer, one number for each class."""

from __future__ import annotations

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import Info, Record, Update
from fedloom.selection._choosing.steps import changes


class OutputChange(Measure):
    """Reports how local training changed the output layer."""

    def __call__(
        self,
        workload: object,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """Return `{"output": [C floats]}`: the change of the output layer's bias, or of its weights summed over inputs.

        The array is `knobs["array"]`, or if that is None the model's last one with an axis; classes come first.

        Raises:
            UsageError: the model has no such array, or it has no axis of classes.
        """
        moved = {name: change for name, change in changes(model, update, "hics") if change.ndim}
        name = knobs["array"] or next(reversed(moved), None)
        if name not in moved:
            raise UsageError(
                f"selection 'hics' reads the output layer from array {name!r}, but the trained arrays with classes are "
                f"{sorted(moved)}. Set selection.array to one of them"
            )
        change = moved[name]
        return {"output": change.reshape(change.shape[0], -1).sum(axis=1).tolist()}


def build_measure() -> OutputChange:
    """Return the measure; its setting comes with each job."""
    return OutputChange()
