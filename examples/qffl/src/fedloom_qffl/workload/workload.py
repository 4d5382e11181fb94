"""Data, model and training in NumPy, and an action of its own: training that also tells the loss it began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedloom.core.config import Experiment
from fedloom.core.protocols import Action, Inputs, LocalRule, Workload, WorkloadInfo
from fedloom.core.records import MODEL, Job, Mean, Metrics, Record, Update
from fedloom.core.seeds import generator
from fedloom_qffl.workload.config import Config

Floats = npt.NDArray[np.float32]
MINORITY = 5
"""Every client whose number is a multiple of this follows the other law."""


@dataclass(frozen=True, slots=True)
class Table:
    """A client's data: x of shape (n, features), y of shape (n,), both float32."""

    x: Floats
    y: Floats

    @property
    def num_examples(self) -> int:
        """Rows of the table."""
        return len(self.y)


class Disagreement(Workload[Table]):
    """Mean squared error of y = x w, minimised by gradient descent."""

    def __init__(self, config: Config, seed: int) -> None:
        self._config, self._seed = config, seed
        self._law = generator(seed, "data", "law").normal(size=config.features)

    @property
    def actions(self) -> Mapping[str, Action]:
        """Jobs of the kind `train.appraised`: what the strategy asks for."""
        return {"train.appraised": self._appraised}

    def describe(self) -> WorkloadInfo:
        return WorkloadInfo(data={"name": "two laws", "kind": "synthetic", "licence": None, "sha256": None})

    def init(self, rng: np.random.Generator) -> Record:
        return Record({MODEL: {"w": np.zeros(self._config.features, np.float32)}})

    def shard(self, client: int) -> Table:
        return self._table("client", client, shifted=client % MINORITY == 0)

    def held_out(self, part: int, parts: int) -> Table:
        whole = self._table("test", 0, shifted=False)
        return Table(whole.x[part::parts], whole.y[part::parts])

    def train(self, job: Job, inputs: Inputs, shard: Table, rule: LocalRule | None, rng: np.random.Generator) -> Update:
        (anchor,) = inputs[MODEL].groups[MODEL].values()  # read-only
        w = np.array(anchor)
        if rule is not None:
            rule.begin([(MODEL, "w")], job.knobs)
        for _ in range(self._config.steps):
            gradients = [2 * shard.x.T @ (shard.x @ w - shard.y) / np.float32(shard.num_examples)]
            if rule is not None:
                rule.adjust_gradients(gradients, [w], [anchor], job.knobs)
            w -= np.float32(self._config.learning_rate) * gradients[0]
        metrics = {"loss": _loss(shard, w)}
        return Update(num_examples=shard.num_examples, groups={MODEL: {"w": w}}, metrics=metrics)

    def evaluate(self, inputs: Inputs, shard: Table) -> Metrics:
        w: Floats = inputs[MODEL].groups[MODEL]["w"]
        return {"loss": _loss(shard, w)}

    def _appraised(self, job: Job, inputs: Inputs, state: Record | None, rng: np.random.Generator) -> Update:
        """Train, and report the loss of the model as it came: F_k(w)."""
        shard = self.shard(job.client)
        update = self.train(job, inputs, shard, None, rng)
        return Update(num_examples=update.num_examples, groups=update.groups, metrics=self.evaluate(inputs, shard))

    def _table(self, *path: str | int, shifted: bool) -> Table:
        rng, config = generator(self._seed, "data", *path), self._config
        x = rng.normal(size=(config.examples, config.features))
        y = x @ (self._law + config.shift * shifted) + config.noise * rng.normal(size=config.examples)
        return Table(x.astype(np.float32), y.astype(np.float32))


def _loss(shard: Table, w: Floats) -> Mean:
    error = (shard.x @ w - shard.y).astype(np.float64)
    return Mean(float((error**2).sum()), float(shard.num_examples))


def build_workload(config: Config, experiment: Experiment) -> Disagreement:
    """Return the workload a `Config` describes."""
    return Disagreement(config, experiment.seed)
