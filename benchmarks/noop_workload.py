"""A workload without work: what a round costs when clients cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import LocalRule, Shard, WorkloadInfo
from fedloom.core.records import MODEL, Job, Mean, Metrics, Record, Update


class Config(PluginSettings):
    """Arrays that travel and never change."""

    kilobytes: Annotated[int, Field(ge=1)] = 10
    """Size of the model; float32, in arrays of at most 4 MiB."""


@dataclass(frozen=True, slots=True)
class OneExample:
    """Nobody's data."""

    num_examples: int = 1


class Noop:
    """Every client sends the global model back as it came."""

    def __init__(self, config: Config) -> None:
        self._elements = config.kilobytes * 1024 // 4

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"name": "nothing", "kind": "synthetic"})

    def init(self, rng: np.random.Generator) -> Record:
        sizes: Sequence[int] = [1 << 20] * (self._elements >> 20) + [self._elements % (1 << 20)]
        return Record({MODEL: {f"w{index}": np.ones(size, np.float32) for index, size in enumerate(sizes) if size}})

    def shard(self, client: int) -> OneExample:
        return OneExample()

    def held_out(self, part: int, parts: int) -> None:
        return None

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: Shard,
        rule: LocalRule | None,
        rng: np.random.Generator,
    ) -> Update:
        return Update(num_examples=1, groups=inputs[MODEL].groups, metrics={"loss": Mean(0.0, 1.0)})

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard) -> Metrics:
        return {}


def build_workload(config: Config, experiment: Experiment) -> Noop:
    """The workload a `Config` describes."""
    return Noop(config)
