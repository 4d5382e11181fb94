"""The client half: predicted gain of the client's data for each output of the global model, without training."""

from __future__ import annotations

from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from fedloom.core.protocols import Measure, Shard, require
from fedloom.core.records import MODEL, Array, Arrays, Info, Record, Update

Sh_contra = TypeVar("Sh_contra", bound=Shard, contravariant=True)


@runtime_checkable
class HasClassErrors(Protocol[Sh_contra]):
    """A workload that reports its outputs' errors without training."""

    def class_errors(self, arrays: Arrays, shard: Sh_contra, rng: np.random.Generator) -> Array:
        """Return the mean over the shard of the loss's negative gradient at the outputs, up to a positive constant.

        float64 [C] in [-1, 1]. For softmax cross-entropy it is y - softmax(z), y the one-hot label.
        """


class PredictedGain(Measure):
    """Reports the predicted gain of the client's data for each output of the global model."""

    def __call__(
        self,
        workload: object,
        model: Record,
        update: Update,
        shard: Shard,
        rng: np.random.Generator,
        knobs: Info,
    ) -> Info:
        """Return `{"gain": [C floats]}`: q_kc - E[softmax(z)_c], label shares minus predicted shares.

        Raises:
            UnsupportedFeature: the workload does not report its outputs' errors.
        """
        hint = "use image_classification or spiking_classification"
        errors = require(workload, HasClassErrors, "selection 'predicted_credit'", hint).class_errors
        return {"gain": errors(model.groups[MODEL], shard, rng).tolist()}


def build_measure() -> PredictedGain:
    """Return the measure; it has no settings."""
    return PredictedGain()
