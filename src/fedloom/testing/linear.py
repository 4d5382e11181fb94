"""A workload small enough to check by hand: linear regression by gradient descent, in NumPy, with faults on request.

Client k has 20 + k mod 7 examples x ~ N(0, I), y = x @ (1, 2, …, features) + 0.1 N(0, 1), all float32. The model is `w`
of shape (features,) and `b` of shape (). Experiments name it `fedloom.testing.linear`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.errors import DataMissing
from fedloom.core.protocols import Inputs, LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Array, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator

_BATCH = 16
_HELD_OUT = 10_000
"""The held-out data is the shard of this client."""


class Config(PluginSettings):
    """Linear regression on synthetic data."""

    features: int = 5
    """Inputs of the regression, and weights of the model besides its bias."""
    steps: int = 3
    """Steps of a client's training, each on 16 of its examples drawn without replacement."""
    learning_rate: float = 0.1
    """Step size of the descent."""
    sleep_s: float = 0.0
    """Seconds each training takes longer."""
    fail_clients: tuple[int, ...] = ()
    """Clients whose training raises."""
    nan_clients: tuple[int, ...] = ()
    """Clients whose update is not a number."""
    wide_clients: tuple[int, ...] = ()
    """Clients whose update has another shape."""
    die_once: str = ""
    """A file: the first worker that trains while it does not exist creates it and kills itself."""
    die_always: bool = False
    """Whether every worker that trains kills itself."""
    exit_clients: tuple[int, ...] = ()
    """Clients whose training calls `sys.exit`."""
    die_clients: tuple[int, ...] = ()
    """Clients whose training ends its process, as a crash of a C library does."""
    wrong_dtype_clients: tuple[int, ...] = ()
    """Clients whose update is float64."""
    empty_clients: tuple[int, ...] = ()
    """Clients without examples."""
    hang_clients: tuple[int, ...] = ()
    """Clients whose training never returns."""
    hang_init_once: str = ""
    """A file: a node that creates the initial model while it does not exist creates it and never returns."""
    needs: str = ""
    """A file required for all work."""
    init_needs: str = ""
    """A file required for an initial model."""


@dataclass(frozen=True)
class Shard:
    """One client's examples."""

    x: Array
    """Inputs, (n, features), float32."""
    y: Array
    """Targets, (n,), float32."""

    @property
    def num_examples(self) -> int:
        """Return the examples in the shard."""
        return len(self.y)

    @property
    def is_empty(self) -> bool:
        """Return whether there are no examples."""
        return not len(self.y)


class Linear:
    """Mean squared error of x @ w + b, by plain gradient descent.

    Args:
        config: its settings.
        experiment: gives the seed of the data and the number of clients.

    Raises:
        DataMissing: the file of `needs` is not there.
    """

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.config, self.seed, self.clients = config, experiment.seed, experiment.num_clients
        _require(config.needs)

    def describe(self) -> WorkloadInfo:
        sizes = [self._size(client) for client in range(self.clients)]
        return WorkloadInfo(data={"name": "linear", "kind": "synthetic"}, client_sizes=sizes)

    def init(self, rng: np.random.Generator) -> Record:
        _require(self.config.init_needs)
        if self.config.hang_init_once and not Path(self.config.hang_init_once).exists():
            Path(self.config.hang_init_once).touch()
            _hang()
        w = rng.standard_normal(self.config.features).astype(np.float32)
        return Record({MODEL: {"w": w, "b": np.zeros((), np.float32)}})

    def shard(self, client: int) -> Shard:
        rng = generator(self.seed, "data", client)
        x = rng.standard_normal((self._size(client), self.config.features)).astype(np.float32)
        truth = np.arange(1, self.config.features + 1, dtype=np.float32)
        return Shard(x, (x @ truth + 0.1 * rng.standard_normal(len(x))).astype(np.float32))

    def held_out(self, part: int, parts: int) -> Shard | None:
        whole = self.shard(_HELD_OUT)
        return Shard(whole.x[part::parts], whole.y[part::parts])

    def train(self, job: Job, inputs: Inputs, shard: Shard, rule: LocalRule | None, rng: np.random.Generator) -> Update:
        config = self.config
        self._misbehave(job.client)
        model, anchor = inputs[MODEL].groups[MODEL], inputs.get("anchor", inputs[MODEL]).groups[MODEL]
        w, b = model["w"].copy(), model["b"].copy()
        if rule is not None:
            rule.begin([(MODEL, "w"), (MODEL, "b")], job.knobs)
        loss, rate = 0.0, np.float32(config.learning_rate)
        for _ in range(config.steps):
            pick = rng.permutation(len(shard.y))[:_BATCH]
            error = shard.x[pick] @ w + b - shard.y[pick]
            loss += float((error**2).mean())
            slopes = [2 * shard.x[pick].T @ error / np.float32(len(pick)), np.asarray(np.float32(2 * error.mean()))]
            if rule is not None:
                rule.adjust_gradients(slopes, [w, b], [anchor["w"], anchor["b"]], job.knobs)
            w, b = w - rate * slopes[0], np.asarray(b - rate * slopes[1])
        if job.client in config.nan_clients:
            w[0] = np.nan
        if job.client in config.wide_clients:
            w = np.zeros(config.features + 1, np.float32)
        if job.client in config.wrong_dtype_clients:
            w = w.astype(np.float64)
        return Update(
            num_examples=shard.num_examples,
            groups={MODEL: {"w": w, "b": b}},
            metrics={"loss": Mean(loss / config.steps * shard.num_examples, shard.num_examples)},
        )

    def evaluate(self, inputs: Inputs, shard: Shard) -> Metrics:
        arrays = inputs[MODEL].groups[MODEL]
        error = shard.x @ arrays["w"] + arrays["b"] - shard.y
        return {"loss": Mean(float((error**2).sum()), len(shard.y))}

    def _size(self, client: int) -> int:
        """Return the number of a client's examples."""
        return 0 if client in self.config.empty_clients else 20 + client % 7

    def _misbehave(self, client: int) -> None:
        """Misbehave before training as the settings require."""
        config = self.config
        if config.sleep_s:
            time.sleep(config.sleep_s)
        if config.die_always or (config.die_once and not Path(config.die_once).exists()):
            if config.die_once:
                Path(config.die_once).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if client in config.hang_clients:
            _hang()
        if client in config.die_clients:
            os.kill(os.getpid(), signal.SIGKILL)
        if client in config.exit_clients:
            sys.exit(2)
        if client in config.fail_clients:
            raise RuntimeError(f"client {client} has a broken sensor")


def build_workload(config: Config, experiment: Experiment) -> Linear:
    """Build the workload a `Config` describes."""
    return Linear(config, experiment)


def _hang() -> None:
    while True:
        time.sleep(1.0)


def _require(file: str) -> None:
    if file and not Path(file).exists():
        raise DataMissing(f"there is no {file}; create it")
