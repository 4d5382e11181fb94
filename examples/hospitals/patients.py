"""A table of patients as a workload: a small network on the numeric columns of each hospital's own CSV file."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import nn

from fedloom.core.config import Settings
from fedloom.core.errors import DataMissing
from fedloom.core.protocols import WorkloadInfo
from fedloom.core.setting_types import ColumnName, DataPath
from fedloom.torch import Examples, TorchConfig, TorchWorkload


class Table(Settings):
    """The file, its columns, and what they are normalised by."""

    file: DataPath = "$DATA/patients.csv"
    """A CSV file with a header line."""
    columns: tuple[ColumnName, ...]
    """Numeric columns, in the order of the network's inputs."""
    label: ColumnName = "diagnosis"
    """Column of the classes, 0 or 1."""
    mean: tuple[float, ...] | None = None
    """Taken from the columns; the sites of a federation set it from the sums of all."""
    std: tuple[float, ...] | None = None
    """What the columns are divided by after that."""


class Config(TorchConfig):
    """A network on a table."""

    data: Table
    hidden: int = 16
    """Hidden neurons."""


class Patients(TorchWorkload[Config]):
    """An MLP with one hidden layer; the loss is cross-entropy."""

    def model(self) -> nn.Module:
        inputs, hidden = len(self.config.data.columns), self.config.hidden
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def dataset(self) -> Examples:
        table = self.config.data
        x, y = _read(table)
        self._sums = {"n": len(x), "sum": x.sum(0).tolist(), "squares": (x**2).sum(0).tolist()}
        mean, std = (x.mean(0), x.std(0)) if table.mean is None else (np.array(table.mean), np.array(table.std))
        rows = ((x - mean) / std).astype(np.float32)
        return Examples(train=(rows, y), test_fraction=0.25, label_names=("benign", "malignant"), title="patients")

    def describe(self) -> WorkloadInfo:
        info, table = super().describe(), self.config.data
        sums = {"sums": self._sums} if table.mean is None else {}
        return replace(info, data={**info.data, "columns": dict.fromkeys(table.columns, "float64"), **sums})


def _read(table: Table) -> tuple[np.ndarray, np.ndarray]:
    with Path(table.file).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    missing = [name for name in (*table.columns, table.label) if not rows or name not in rows[0]]
    if missing:
        raise DataMissing(f"the table has no column {missing[0]!r}, or no row; expected {', '.join(table.columns)}")
    x = np.array([[float(row[name]) for name in table.columns] for row in rows])
    return x, np.array([int(row[table.label]) for row in rows])


build_workload = Patients
