"""Every update apart, and no arrays at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from fedloom.core.accumulators.base import Allocate
from fedloom.core.accumulators.sums import is_finite, not_finite
from fedloom.core.records import Array, Mean, Record, Update


class UpdateList:
    """Every update apart, in cohort order, for rules that need them so (median, Krum, Flower strategies)."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self.updates: list[tuple[int, Update]] = []

    def add(self, update: Update, weight: float, client: int) -> None:
        for group, name, array in Record(update.groups).items():
            if not is_finite(array):
                raise not_finite(client, group, name)
        copies = {g: {n: np.array(array) for n, array in arrays.items()} for g, arrays in update.groups.items()}
        self.updates.append(
            (client, Update(num_examples=update.num_examples, groups=copies, metrics=update.metrics, info=update.info))
        )
        self.count += 1

    def merge(self, other: Self) -> None:
        self.updates.extend(other.updates)
        self.count += other.count

    def record(self) -> Record:
        groups: dict[str, Mapping[str, Array]] = {}
        heads = []
        for index, (client, update) in enumerate(self.updates):
            groups |= {f"{index}:{group}": arrays for group, arrays in update.groups.items()}
            heads.append(
                {
                    "client": client,
                    "num_examples": int(update.num_examples),
                    "groups": list(update.groups),
                    "metrics": {name: [float(mean.sum), float(mean.weight)] for name, mean in update.metrics.items()},
                    "info": update.info,
                }
            )
        return Record(groups, {"updates": heads})

    @classmethod
    def from_record(cls, record: Record) -> Self:
        self = cls()
        for index, head in enumerate(record.info["updates"]):
            update = Update(
                num_examples=head["num_examples"],
                groups={group: record.groups[f"{index}:{group}"] for group in head["groups"]},
                metrics={name: Mean(*pair) for name, pair in head["metrics"].items()},
                info=head["info"],
            )
            self.updates.append((head["client"], update))
        self.count = len(self.updates)
        return self


class MetricsOnly:
    """No arrays at all: for evaluations, whose metrics travel in the reports."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0

    def add(self, update: Update, weight: float, client: int) -> None:
        self.count += 1

    def merge(self, other: Self) -> None:
        self.count += other.count

    def record(self) -> Record:
        return Record(info={"count": self.count})

    @classmethod
    def from_record(cls, record: Record) -> Self:
        self = cls()
        self.count = int(record.info["count"])
        return self
