"""A client's report: three sums over its samples, and the frequency of each predicted class. No label, no sample."""

from __future__ import annotations

import numpy as np

from fedloom.core.protocols import HasLogits, Inputs, Observation, Shard, Watch, require
from fedloom.core.records import Array, Info, Mean
from fedloom.strategies.mano.monitor.config import Config
from fedloom.strategies.mano.monitor.score import Sums

_WANTED_BY = "monitor 'mano'"


def logit_sums(logits: Array) -> Info:
    """Return sums of the logits (n, K), and `predicted`: samples by predicted class, K counts."""
    classes = logits.shape[1]
    counts = np.bincount(np.argmax(logits, axis=1), minlength=classes) if len(logits) else np.zeros(classes)
    return {**Sums.of(logits).to_json(), "predicted": [float(count) for count in counts]}


class LogitSums(Watch):
    """Sums of the global model's logits, with the accuracy if labels are known."""

    def check(self, workload: object) -> None:
        require(workload, HasLogits, _WANTED_BY)

    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        """Observe the model's logits. Labels are used only for the true accuracy shown with the estimate."""
        logits, labels = require(workload, HasLogits, _WANTED_BY).logits(inputs, shard)
        right = {}
        if labels is not None:
            right["accuracy"] = Mean(float((logits.argmax(axis=1) == labels).sum()), float(len(logits)))
        return Observation(num_examples=len(logits), info=logit_sums(logits), metrics=right)


def build_watch(config: Config) -> LogitSums:
    """Return the client half a `Config` describes; all clients send the same, whatever the settings."""
    return LogitSums()
