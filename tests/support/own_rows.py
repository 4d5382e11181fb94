"""A workload for sites: each has a table of its own, and the model is a mean of its rows that can be computed by hand.

Training returns the mean of the normalised rows, (x - mean) / std, so a round of FedAvg gives the mean over all sites'
rows; with another `rate` than 1 it moves the model that part of the way there. A client remembers how often it has
trained.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment, PluginSettings, Settings
from fedloom.core.errors import ConfigError, DataMissing
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import Array, Job, Mean, Metrics, Record, Update
from fedloom.core.setting_types import DataPath


class Data(Settings):
    """Where the rows are, and what they are normalised by."""

    file: DataPath = "$DATA/rows.npz"
    """An archive with `x`, (n, columns), and `y`, (n,), classes."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


class Config(PluginSettings):
    """Means of rows."""

    data: Data = Data()
    partition: str = "all"
    rate: float = 1.0


class Shard:
    def __init__(self, x: Array) -> None:
        self.x = x

    @property
    def num_examples(self) -> int:
        return len(self.x)


class OwnRows:
    keeps_client_state = True

    def __init__(self, config: Config, experiment: Experiment) -> None:
        if experiment.num_clients != 1:
            raise ConfigError(f"clients: one site is one client, got {experiment.num_clients}")
        path = Path(config.data.file)
        if not path.is_file():
            raise DataMissing(f"no {path.name} here")
        table = np.load(path)
        self.x, self.y = table["x"].astype(np.float64), table["y"]
        if not len(self.x):
            raise DataMissing("the table has no rows")
        self.config, self.first = config, experiment.seed
        self.train_rows, self.test_rows = np.arange(len(self.x)) % 5 != 4, np.arange(len(self.x)) % 5 == 4

    def describe(self) -> WorkloadInfo:
        x = self.x[self.train_rows]
        names = [str(name) for name in range(2)]
        data = {"name": "rows", "kind": "synthetic", "label_names": names, "num_train": len(x),
                "num_test": int(self.test_rows.sum())}  # fmt: skip
        data["sha256"] = hashlib.sha256(self.x.tobytes()).hexdigest()
        data["columns"] = {f"x{place}": "float64" for place in range(x.shape[1])}
        if self.config.data.mean is None:
            data["sums"] = {"n": len(x), "sum": x.sum(0).tolist(), "squares": (x**2).sum(0).tolist()}
        counts = np.bincount(self.y[self.train_rows], minlength=2).tolist()
        return WorkloadInfo(data=data, client_sizes=[len(x)], label_counts=[counts], label_names=names)

    def init(self, rng: np.random.Generator) -> Record:
        return Record({"model": {"w": np.zeros(self.x.shape[1], np.float64)}})

    def shard(self, client: int) -> Shard:
        assert client == 0, client
        return Shard(self._normalised(self.x[self.train_rows]))

    def held_out(self, part: int, parts: int) -> Shard:
        assert (part, parts) == (0, 1)
        return Shard(self._normalised(self.x[self.test_rows]))

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard, state: Record | None = None) -> Metrics:
        error = ((shard.x - inputs["model"].groups["model"]["w"]) ** 2).sum()
        return {"loss": Mean(float(error), shard.num_examples)}

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: Shard, rule: LocalRule | None, rng: np.random.Generator,
        state: Record | None = None,
    ) -> Update:  # fmt: skip
        times = 1 if state is None else int(state.info["times"]) + 1
        return Update(
            num_examples=shard.num_examples,
            groups={"model": {"w": self._moved(inputs["model"].groups["model"]["w"], shard.x.mean(0))}},
            metrics={"times": Mean(float(times), 1.0), "loss": Mean(float(shard.x.std()), 1.0)},
            state=Record(info={"times": times}),
        )

    def _moved(self, w: Array, mean: Array) -> Array:
        return mean if self.config.rate == 1.0 else np.asarray(w + self.config.rate * (mean - w))

    def _normalised(self, x: Array) -> Array:
        settings = self.config.data
        return x if settings.mean is None else np.asarray((x - np.array(settings.mean)) / np.array(settings.std))


def build_workload(config: Config, experiment: Experiment) -> OwnRows:
    return OwnRows(config, experiment)
