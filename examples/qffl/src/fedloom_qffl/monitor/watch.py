"""The client half: one number leaves the client, its loss of the global model."""

from __future__ import annotations

from typing import cast

import numpy as np

from fedloom.core.plugins import AnyWorkload
from fedloom.core.protocols import Inputs, Observation, Shard, Watch
from fedloom_qffl.monitor.config import Config


class Loss(Watch):
    """The loss of the global model on a client's data. Every workload will do whose evaluation has a `loss`."""

    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        loss = cast(AnyWorkload, workload).evaluate(inputs, shard)["loss"]
        return Observation(num_examples=shard.num_examples, info={"loss": loss.value})


def build_watch(config: Config) -> Loss:
    """Return the client half a `Config` describes."""
    return Loss()
