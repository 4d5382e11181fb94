"""A client's report: sums of features of its images and of samples. The workload computes it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from fedloom.core.protocols import Inputs, Observation, Shard, Watch, require
from fedloom.core.records import JsonObject
from fedloom.workloads.generative.monitor.config import Config

_WANTED_BY = "monitor 'generative'"


@runtime_checkable
class HasCensus(Protocol):
    """A workload that measures samples of its models against a client's images."""

    def census(
        self, inputs: Inputs, shard: Shard, rng: np.random.Generator, *, samples: int, pictures: int
    ) -> JsonObject:
        """Return sums and counts as JSON, see `fedloom.workloads.generative.census`."""


class SampleSums(Watch):
    """Sums over a client's images and over samples.

    Args:
        config: how many samples.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self, workload: object) -> None:
        require(workload, HasCensus, _WANTED_BY)

    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        able = require(workload, HasCensus, _WANTED_BY)
        found = able.census(inputs, shard, rng, samples=self._config.samples, pictures=self._config.pictures)
        return Observation(num_examples=shard.num_examples, info=found)


def build_watch(config: Config) -> SampleSums:
    """Return the client half a `Config` describes."""
    return SampleSums(config)
