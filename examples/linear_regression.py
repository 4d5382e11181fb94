"""Linear regression in NumPy: each client has measured the same law with a bias of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import MODEL, Arrays, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator

Values = npt.NDArray[np.float32]


class Config(PluginSettings):
    """y = x · w + b + noise, w and b the same for everybody, x drawn around a centre of the client's own."""

    features: Annotated[int, Field(ge=1)] = 5
    """Length of x and w."""
    examples: Annotated[int, Field(ge=1)] = 40
    """Examples of each client, and of the test set."""
    noise: Annotated[float, Field(ge=0.0)] = 0.1
    """Standard deviation of y around the law."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 0.05
    """Step size of local gradient descent."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Local steps in a round, each on a tenth of the examples (at least one)."""


@dataclass(frozen=True, slots=True)
class Table:
    """A shard: x of shape (n, features), y of shape (n,), both float32."""

    x: Values
    y: Values

    @property
    def num_examples(self) -> int:
        return len(self.y)


class LinearRegression:
    """Mean squared error, minimised by gradient descent."""

    def __init__(self, config: Config, seed: int) -> None:
        self._config, self._seed = config, seed
        law = generator(seed, "data", "law")
        self._w, self._b = law.normal(size=config.features), float(law.normal())

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"name": "a line", "kind": "synthetic", "licence": None, "sha256": None})

    def init(self, rng: np.random.Generator) -> Record:
        w = (0.01 * rng.normal(size=self._config.features)).astype(np.float32)
        return Record({MODEL: {"w": w, "b": np.zeros((), np.float32)}})

    def shard(self, client: int) -> Table:
        return self._table("client", client)

    def held_out(self, part: int, parts: int) -> Table:
        whole = self._table("test", 0)
        return Table(whole.x[part::parts], whole.y[part::parts])

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: Table, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        anchor = list(inputs[MODEL].groups[MODEL].values())  # read-only
        w, b = (np.array(array) for array in anchor)  # this client's own
        batch, losses = max(1, shard.num_examples // 10), 0.0
        if rule is not None:
            rule.begin([(MODEL, "w"), (MODEL, "b")], job.knobs)
        for _ in range(self._config.steps):
            rows = rng.choice(shard.num_examples, batch, replace=False)
            x, error = shard.x[rows], shard.x[rows] @ w + b - shard.y[rows]
            gradients = [2 * x.T @ error / batch, np.asarray(2 * error.mean())]
            if rule is not None:
                rule.adjust_gradients(gradients, [w, b], anchor, job.knobs)
            w -= np.float32(self._config.learning_rate) * gradients[0]
            b -= np.float32(self._config.learning_rate) * gradients[1]
            losses += float(np.mean(error**2))
        return Update(
            num_examples=shard.num_examples,
            groups={MODEL: {"w": w, "b": b}},
            metrics={"loss": Mean(losses, float(self._config.steps))},
        )

    def evaluate(self, inputs: Mapping[str, Record], shard: Table) -> Metrics:
        """`loss`: mean squared error over the shard."""
        arrays: Arrays = inputs[MODEL].groups[MODEL]
        error = shard.x @ arrays["w"] + arrays["b"] - shard.y
        return {"loss": Mean(float((error**2).sum()), float(shard.num_examples))}

    def _table(self, *path: Any) -> Table:
        rng, config = generator(self._seed, "data", *path), self._config
        x = rng.normal(size=config.features) + rng.normal(size=(config.examples, config.features))
        y = x @ self._w + self._b + config.noise * rng.normal(size=config.examples)
        return Table(x.astype(np.float32), y.astype(np.float32))


def build_workload(config: Config, experiment: Experiment) -> LinearRegression:
    """The workload a `Config` describes."""
    return LinearRegression(config, experiment.seed)
