"""Examples by row number, as tensors: what minibatches are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array, Info

Batch: TypeAlias = tuple[tuple[Tensor, ...], Tensor]
"""Arguments of the model, and the targets: each with one entry per example in its first dimension."""


class RowSource(Protocol):
    """Examples by row number."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def batch(self, rows: Tensor) -> Batch:
        """Return the inputs and targets of some rows, (b,) int64, on the device of the work."""


class Shards(Protocol):
    """The rows of each client in the training set; a `Partition` is one."""

    @property
    def sizes(self) -> Array:
        """Return the examples of each client, (clients,); empty if unknown."""

    def client(self, client: int) -> Array:
        """Return the rows of a client, (n,), int64."""

    def label_counts(self, labels: Array, num_labels: int) -> Array:
        """Return the examples of each class for each client, (clients, num_labels)."""


@dataclass(frozen=True, slots=True)
class TensorRows:
    """Examples that are tensors already, on the device of the work."""

    inputs: tuple[Tensor, ...]
    """Arguments of the model, (n, …) each."""
    targets: Tensor
    """Classes or values, (n, …)."""

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor) -> Batch:
        return tuple(each.index_select(0, rows) for each in self.inputs), self.targets.index_select(0, rows)

    @classmethod
    def of(cls, inputs: Array, targets: Array, device: torch.device) -> TensorRows:
        """Share the arrays' memory on a CPU; copy them to a GPU."""
        return cls((torch.from_numpy(inputs).to(device),), torch.from_numpy(targets).to(device))


@dataclass(frozen=True, kw_only=True, slots=True)
class RowData:
    """A training set, its test set, and facts about them."""

    train: RowSource
    test: RowSource | None
    """None if nothing is held out."""
    info: Info
    """Source of the examples, as in `WorkloadInfo.data`."""
    sha256: str
    """Digest of the examples and their preparation; a partition is drawn for it."""
    labels: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Class of each training example, (n,), int64; empty without classes."""
    num_labels: int = 0
    """Number of classes; 0 without classes."""
    label_names: tuple[str, ...] = ()
    """Names of the classes; none if the report must not show the partition."""
    groups: Array | None = None
    """Group of each training example, (n,), int64, for the partition `natural`."""
    shards: Shards | None = None
    """The partition; None uses the settings' one."""
