"""The client half: codes the held-out photographs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from fedloom.core.protocols import Inputs, Observation, Shard, Watch, require
from fedloom.core.records import JsonObject
from fedloom.workloads.llic.config import Rival
from fedloom.workloads.llic.monitor.config import Config

_WANTED_BY = "monitor 'llic'"


@runtime_checkable
class HasCodecReport(Protocol):
    """A workload whose model codes images."""

    def codec_report(self, inputs: Inputs, shard: Shard, *, pictures: int, rivals: Sequence[Rival]) -> JsonObject:
        """Return what the codec makes of a shard's photographs, see `fedloom.workloads.llic.showing`."""


class CodecWatch(Watch):
    """Reports the codec of the global model.

    Args:
        config: what is reported.
    """

    def __init__(self, config: Config) -> None:
        self._config = config

    def check(self, workload: object) -> None:
        require(workload, HasCodecReport, _WANTED_BY)

    def __call__(self, workload: object, inputs: Inputs, shard: Shard, rng: np.random.Generator) -> Observation:
        able = require(workload, HasCodecReport, _WANTED_BY)
        found = able.codec_report(inputs, shard, pictures=self._config.pictures, rivals=self._config.rivals)
        return Observation(num_examples=shard.num_examples, info=found)


def build_watch(config: Config) -> CodecWatch:
    """Return the client half a `Config` describes."""
    return CodecWatch(config)
