"""A workload that costs next to nothing, with a model as large as told: what is left is the platform's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import Job, Mean, Metrics, Record, Update


class Config(PluginSettings):
    """Next to nothing."""

    size: int = 4
    """Elements of the model, float32."""


class Shard:
    num_examples = 1


class Still:
    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.size, self.clients = config.size, experiment.num_clients

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"kind": "synthetic"}, client_sizes=[1] * self.clients)

    def init(self, rng: np.random.Generator) -> Record:
        return Record({"model": {"w": np.ones(self.size, np.float32)}})

    def shard(self, client: int) -> Shard:
        return Shard()

    def held_out(self, part: int, parts: int) -> Shard:
        return Shard()

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: Shard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        return Update(num_examples=1, groups=inputs["model"].groups, metrics={"loss": Mean(0.0, 1)})

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard) -> Metrics:
        return {"loss": Mean(0.0, 1)}


def build_workload(config: Config, experiment: Experiment) -> Still:
    return Still(config, experiment)
