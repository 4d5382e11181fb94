"""A workload whose clients remember: each keeps how often it was asked, and what it last saw."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import Job, Mean, Metrics, Record, Update


class Config(PluginSettings):
    """Counting."""

    size: int = 4
    """Elements of the model, and of what each client keeps."""
    fail_clients: tuple[int, ...] = ()
    sleep_s: float = 0.0


class Shard:
    num_examples = 1


class Counting:
    keeps_client_state = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.config, self.clients = config, experiment.num_clients

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"kind": "synthetic"}, client_sizes=[1] * self.clients)

    def init(self, rng: np.random.Generator) -> Record:
        return Record({"model": {"w": rng.standard_normal(self.config.size).astype(np.float32)}})

    def shard(self, client: int) -> Shard:
        return Shard()

    def held_out(self, part: int, parts: int) -> Shard:
        return Shard()

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard, state: Record | None = None) -> Metrics:
        return {"level": Mean(float(inputs["model"].groups["model"]["w"].mean()), 1)}

    def train(
        self,
        job: Job,
        inputs: Mapping[str, Record],
        shard: Shard,
        rule: LocalRule | None,
        rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:
        if self.config.sleep_s:
            time.sleep(self.config.sleep_s)
        if job.client in self.config.fail_clients:
            raise RuntimeError("this one is off")
        seen = int(state.info["seen"]) if state is not None else 0
        memory = state.groups["own"]["memory"] if state is not None else np.zeros(self.config.size, np.float32)
        w = inputs["model"].groups["model"]["w"]
        memory = memory * np.float32(0.5) + w + rng.standard_normal(len(w)).astype(np.float32)
        return Update(
            num_examples=job.client + 1,
            groups={"model": {"w": w * np.float32(0.9) + memory * np.float32(0.01 * (seen + 1))}},
            metrics={"seen": Mean(float(seen), 1)},
            state=Record({"own": {"memory": memory}}, {"seen": seen + 1}),
        )


def build_workload(config: Config, experiment: Experiment) -> Counting:
    return Counting(config, experiment)
