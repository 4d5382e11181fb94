"""The client half: how local training changed the output layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedloom.core.errors import UsageError
from fedloom.core.protocols import Measure, Shard
from fedloom.core.records import Info, Record, Update
from fedloom.selection._choosing.sampling import Floats
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
        """Return `{"weights": [C n floats], "bias": [C floats], "classes": C}`: the change of the output layer.

        The weights are the array `knobs["array"]`, or if that is None the model's last one with two or more axes, else
        its last one with one; classes come first. The bias is the next array if it has one number for each class, else
        empty.

        Raises:
            UsageError: the model has no such array, or it has no axis of classes.
        """
        moved = {name: change for name, change in changes(model, update, "hics") if change.ndim}
        name = knobs["array"] or _last(moved)
        if name not in moved:
            raise UsageError(
                f"selection 'hics' reads the output layer from array {name!r}, but the trained arrays with classes are "
                f"{sorted(moved)}. Set selection.array to one of them"
            )
        weights = moved[name]
        following = [moved[other] for other in list(moved)[list(moved).index(name) + 1 :]][:1]
        bias = [each for each in following if each.shape == weights.shape[:1] and weights.ndim > 1]
        return {
            "weights": weights.reshape(-1).tolist(),
            "bias": bias[0].tolist() if bias else [],
            "classes": float(len(weights)),
        }


def build_measure() -> OutputChange:
    """Return the measure; its setting comes with each job."""
    return OutputChange()


def _last(moved: Mapping[str, Floats]) -> str | None:
    deep = [name for name, change in moved.items() if change.ndim > 1]
    return next(reversed(deep or list(moved)), None)
