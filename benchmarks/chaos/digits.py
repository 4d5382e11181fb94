"""Digits with a small network, each client a little slower than it need be, so that faults find it at work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chaos.schedule import ROUNDS
from fedloom.core.config import Experiment
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import Job, Metrics, Record, Update
from fedloom.workloads._data.rows import RowShard
from fedloom.workloads.image_classification import config as image_classification
from fedloom.workloads.image_classification.workload import ImageClassification
from fedloom.workloads.image_classification.workload import build_workload as build_plain

CLIENT_S = 0.03
"""Seconds a client takes at least."""
ledger: Path | None = None
"""File to which each training of this process adds a line, its round and client."""


class Config(image_classification.Config):
    """Digits, slowly."""

    name: str = __name__


class SlowDigits:
    """Image classification as it is, after a pause."""

    def __init__(self, plain: ImageClassification) -> None:
        self._plain = plain

    def describe(self) -> WorkloadInfo:
        return self._plain.describe()

    def init(self, rng: np.random.Generator) -> Record:
        return self._plain.init(rng)

    def shard(self, client: int) -> RowShard:
        return self._plain.shard(client)

    def held_out(self, part: int, parts: int) -> RowShard | None:
        return self._plain.held_out(part, parts)

    def evaluate(self, inputs: Mapping[str, Record], shard: RowShard) -> Metrics:
        return self._plain.evaluate(inputs, shard)

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: RowShard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        time.sleep(CLIENT_S)
        if ledger is not None:
            with ledger.open("a", encoding="utf-8") as file:
                file.write(f"{job.round} {job.client}\n")
        return self._plain.train(job, inputs, shard, rule, rng)


def build_workload(settings: Config, experiment: Experiment) -> SlowDigits:
    """The workload a `Config` describes."""
    return SlowDigits(build_plain(settings, experiment))


def experiment(seed: int) -> Experiment:
    """Six rounds of six clients in three groups; 50,890 parameters, so that a model does not fit into a message."""
    values: dict[str, Any] = {
        "name": "chaos",
        "seed": seed,
        "rounds": ROUNDS,
        "clients": 12,
        "cohort": 6,
        "strategy": "fedavg",
        "workload": {
            "name": __name__,
            "model": {"name": "mlp", "hidden": [678]},
            "training": {"learning_rate": 0.05, "epochs": 1},
        },
        "round": {"group_size": 2},
        "evaluation": {"every": 3},
        "runtime": {"name": "inline"},
    }
    return Experiment.parse(values)


def load() -> None:
    """Import all that a run needs and read the data once, in a process that will be forked."""
    experiment_ = experiment(1)
    build_plain(Config(**experiment_.to_dict()["workload"]), experiment_)
