"""A workload whose clients have their sums done by helpers: a table that adds up, one for each of two."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import HelperHandle, Helpers, LocalRule, Resources, WorkloadInfo
from fedloom.core.records import Job, Mean, Metrics, Record, Update


class Config(PluginSettings):
    """Clients with helpers."""

    helpers: int = 2
    """Helpers each worker starts."""
    size: int = 300
    """Elements of the model."""
    log: str = ""
    """A folder that gets a file for each helper, named by its process; empty for none."""


class Table:
    """What a helper is: a matrix of its own, and how often it was used."""

    def __init__(self, seed: int, size: int) -> None:
        self.matrix = np.random.Generator(np.random.PCG64(seed)).standard_normal((size, size)).astype(np.float32)
        self.uses = 0

    def step(self, w: np.ndarray, scale: float) -> np.ndarray:
        """One step: the model through the matrix. What came is changed in place, which nobody may notice."""
        self.uses += 1
        moved = self.matrix @ w
        w += 1
        stepped: np.ndarray = np.float32(scale) * np.tanh(moved)
        return stepped

    def where(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        raise ValueError("the table is broken")

    def die(self) -> None:
        os._exit(7)


class Shard:
    num_examples = 1


class Helping:
    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.config, self.clients = config, experiment.num_clients
        self.helpers: Helpers | None = None
        self.started: list[HelperHandle] = []

    def use_helpers(self, helpers: Helpers) -> None:
        assert self.helpers is None, "given once"
        self.helpers = helpers

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"kind": "synthetic"}, client_sizes=[1] * self.clients)

    def init(self, rng: np.random.Generator) -> Record:
        return Record({"model": {"w": rng.standard_normal(self.config.size).astype(np.float32)}})

    def shard(self, client: int) -> Shard:
        return Shard()

    def held_out(self, part: int, parts: int) -> Shard:
        return Shard()

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard) -> Metrics:
        return {"level": Mean(float(inputs["model"].groups["model"]["w"].mean()), 1)}

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: Shard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        assert self.helpers is not None
        while len(self.started) < self.config.helpers:
            quarter = Resources(cpus=0.25)
            self.started.append(self.helpers.start(Table, len(self.started), self.config.size, resources=quarter))
        w = np.array(inputs["model"].groups["model"]["w"])
        places = []
        for index, helper in enumerate(self.started):
            before = w.copy()
            step = helper.call("step", w, 0.1 + 0.01 * job.client)
            np.testing.assert_array_equal(w, before, "arguments are copied")
            w = w + np.asarray(step)
            places.append(helper.call("where"))
            if self.config.log:
                (Path(self.config.log) / str(places[-1])).touch()
            w = w + np.float32(0.001 * index) * rng.standard_normal(len(w)).astype(np.float32)
        elsewhere = sum(place != os.getpid() for place in places)
        return Update(num_examples=1, groups={"model": {"w": w}}, metrics={"elsewhere": Mean(elsewhere, 1)})


def build_workload(config: Config, experiment: Experiment) -> Helping:
    return Helping(config, experiment)
