"""A workload with data that nobody may see: a table of patients below the node's data folder; NumPy alone."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.protocols import LocalRule, WorkloadInfo
from fedloom.core.records import Arrays, Job, Mean, Metrics, Record, Update
from fedloom.core.setting_types import DataPath

CLASSES = ("benign", "malignant")
COUNTS = (19, 11)
"""Rows of each class in `write_table`."""


class Config(PluginSettings):
    """A table of patients."""

    table: DataPath = "$DATA/patients.csv"
    """Its file: name, age, diagnosis."""


class Shard:
    def __init__(self, rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> None:
        self.rows, self.num_examples = rows, len(rows)


class Patients:
    """Means of age, by diagnosis."""

    def __init__(self, config: Config, experiment: Experiment) -> None:
        self.content = Path(config.table).read_bytes()
        rows = list(csv.DictReader(self.content.decode().splitlines()))
        self.rows = np.array([(float(row["age"]), CLASSES.index(row["diagnosis"])) for row in rows])
        self.clients = experiment.clients if isinstance(experiment.clients, int) else 1

    def describe(self) -> WorkloadInfo:
        counts = [int((self.rows[:, 1] == index).sum()) for index in range(len(CLASSES))]
        return WorkloadInfo(
            data={
                "name": "patients", "kind": "real", "sha256": hashlib.sha256(self.content).hexdigest(),
                "num_train": len(self.rows), "num_test": 7, "mean": [float(self.rows[:, 0].mean())],
                "std": [float(self.rows[:, 0].std())], "oldest": float(self.rows[:, 0].max()),
                "label_names": list(CLASSES), "shape": [1],
            },
            client_sizes=[len(self.rows)] * self.clients,
            label_counts=[counts] * self.clients,
            label_names=list(CLASSES),
        )  # fmt: skip

    def init(self, rng: np.random.Generator) -> Record:
        return Record({"model": {"ages": np.zeros(len(CLASSES))}})

    def shard(self, client: int) -> Shard:
        return Shard(self.rows)

    def held_out(self, part: int, parts: int) -> Shard | None:
        return None

    def train(
        self, job: Job, inputs: Mapping[str, Record], shard: Shard, rule: LocalRule | None, rng: np.random.Generator
    ) -> Update:
        ages: Arrays = {"ages": np.array([shard.rows[shard.rows[:, 1] == c, 0].mean() for c in range(len(CLASSES))])}
        loss = Mean(2.5 * shard.num_examples, shard.num_examples)
        return Update(num_examples=shard.num_examples, groups={"model": ages}, metrics={"loss": loss})

    def evaluate(self, inputs: Mapping[str, Record], shard: Shard) -> Metrics:
        return {"loss": Mean(0.0, 1.0)}


def build_workload(config: Config, experiment: Experiment) -> Patients:
    return Patients(config, experiment)


def write_table(folder: Path) -> list[str]:
    """Write a table; returns the names of the patients."""
    names = [f"Patient-{letter}{number}" for letter in "XYZ" for number in range(10)]
    kinds = [CLASSES[0]] * COUNTS[0] + [CLASSES[1]] * COUNTS[1]
    rows = [f"{name},{40 + index},{kind}" for index, (name, kind) in enumerate(zip(names, kinds, strict=True))]
    (folder / "patients.csv").write_text("\n".join(["name,age,diagnosis", *rows]) + "\n", encoding="utf-8")
    return names
