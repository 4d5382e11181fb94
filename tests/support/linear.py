"""A workload small enough to check by hand: linear regression by gradient descent, in NumPy, with faults on request."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.errors import DataMissing
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator


class Config(PluginSettings):
    """Linear regression on synthetic data."""

    features: int = 5
    steps: int = 3
    learning_rate: float = 0.1
    sleep_s: float = 0.0
    fail_clients: tuple[int, ...] = ()
    """Clients whose training raises."""
    nan_clients: tuple[int, ...] = ()
    """Clients whose update is not a number."""
    wide_clients: tuple[int, ...] = ()
    """Clients whose update has another shape."""
    die_once: str = ""
    """A file: the first worker that trains while it does not exist makes it and kills itself."""
    die_always: bool = False
    needs: str = ""
    """A file without which nothing can be done."""
    init_needs: str = ""
    """A file without which no initial model can be made."""


@dataclass(frozen=True)
class Shard:
    x: np.ndarray
    y: np.ndarray

    @property
    def num_examples(self) -> int:
        return len(self.y)


class Linear:
    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.config, self.seed, self.clients = config, experiment.seed, experiment.clients
        _require(config.needs)

    def describe(self) -> WorkloadInfo:
        sizes = [20 + client % 7 for client in range(self.clients)]
        return WorkloadInfo(data={"name": "linear", "kind": "synthetic"}, client_sizes=sizes)

    def init(self, rng: np.random.Generator) -> Record:
        _require(self.config.init_needs)
        return Record(
            {
                "model": {
                    "w": rng.standard_normal(self.config.features).astype(np.float32),
                    "b": np.zeros((), np.float32),
                }
            }
        )

    def shard(self, client: int) -> Shard:
        rng = generator(self.seed, "data", client)
        x = rng.standard_normal((20 + client % 7, self.config.features)).astype(np.float32)
        truth = np.arange(1, self.config.features + 1, dtype=np.float32)
        return Shard(x, (x @ truth + 0.1 * rng.standard_normal(len(x))).astype(np.float32))

    def held_out(self, part: int, parts: int) -> Shard | None:
        return self.shard(10_000 + part)

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: Shard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        config = self.config
        if config.sleep_s:
            time.sleep(config.sleep_s)
        if config.die_always or (config.die_once and not Path(config.die_once).exists()):
            if config.die_once:
                Path(config.die_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if job.client in config.fail_clients:
            raise RuntimeError(f"client {job.client} has a broken sensor")
        model = inputs["model"].groups["model"]
        w, b = model["w"].copy(), model["b"].copy()
        loss = 0.0
        for _ in range(config.steps):
            pick = rng.permutation(len(shard.y))[:16]
            error = shard.x[pick] @ w + b - shard.y[pick]
            loss += float((error**2).mean())
            w = w - np.float32(config.learning_rate) * (2 * shard.x[pick].T @ error / np.float32(len(pick)))
            b = b - np.float32(config.learning_rate) * np.float32(2 * error.mean())
        if job.client in config.nan_clients:
            w[0] = np.nan
        if job.client in config.wide_clients:
            w = np.zeros(config.features + 1, np.float32)
        return Update(
            num_examples=shard.num_examples,
            groups={"model": {"w": w, "b": np.asarray(b)}},
            metrics={"loss": Mean(loss / config.steps * shard.num_examples, shard.num_examples)},
        )

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard) -> Metrics:
        arrays = inputs["model"].groups["model"]
        error = shard.x @ arrays["w"] + arrays["b"] - shard.y
        return {"loss": Mean(float((error**2).sum()), len(shard.y))}


def _require(file: str) -> None:
    if file and not Path(file).exists():
        raise DataMissing(f"there is no {file}; put it there")


def build_workload(config: Config, experiment: Experiment) -> Linear:
    return Linear(config, experiment)
