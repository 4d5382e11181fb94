"""The client half: reads the held-out utterances at every exit."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from fedloom.core.protocols import Inputs, Observation, Shard, Watch, require
from fedloom.core.records import Info
from fedloom.workloads.hubert_ee.monitor.config import Config

_WANTED_BY = "monitor 'hubert_ee'"


@runtime_checkable
class HasExits(Protocol):
    """A workload whose model has early exits."""

    def exit_report(self, inputs: Inputs, shard: Shard, examples: int, points: int) -> Info:
        """Return errors against depth as JSON, with so many transcripts and thresholds."""


class ExitWatch(Watch):
    """Reports the trade-off of the global model."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self, workload: object) -> None:
        require(workload, HasExits, _WANTED_BY)

    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        able = require(workload, HasExits, _WANTED_BY)
        info = able.exit_report(inputs, shard, self._config.examples, self._config.points)
        return Observation(num_examples=shard.num_examples, info=info)


def build_watch(config: Config) -> ExitWatch:
    """Return the client half a `Config` describes."""
    return ExitWatch(config)
