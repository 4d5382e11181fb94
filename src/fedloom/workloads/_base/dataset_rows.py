"""Rows of a PyTorch dataset, read when a minibatch needs them."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from fedloom.core.errors import PluginInvalid
from fedloom.workloads._base.columns import converted
from fedloom.workloads._base.rows import Batch


@dataclass(frozen=True, slots=True)
class DatasetRows:
    """Items `(x, y)`, or `(x1, x2, y)`, of a map-style dataset, collated as PyTorch's loader does."""

    dataset: Dataset[object]
    device: torch.device
    what: str
    """Owner and origin of the items, for errors."""

    def __len__(self) -> int:
        if not isinstance(self.dataset, Sized):
            raise PluginInvalid(
                f"{self.what} are a {type(self.dataset).__name__} without a length; expected a dataset with __len__ "
                "and __getitem__"
            )
        return len(self.dataset)

    def batch(self, rows: Tensor) -> Batch:
        columns = default_collate([self._item(row) for row in rows.tolist()])
        *inputs, targets = columns
        found = tuple(converted(column, targets=False).to(self.device) for column in inputs)
        return found, converted(targets, targets=True).to(self.device)

    def _item(self, row: int) -> tuple[object, ...]:
        """Return one item, checked: PyTorch's own errors do not name the data set."""
        item = self.dataset[row]
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise PluginInvalid(f"{self.what}: item {row} is a {type(item).__name__}, expected a tuple (x, y)")
        for place, value in enumerate(item):
            if not isinstance(value, Tensor | np.ndarray | np.generic | int | float):
                raise PluginInvalid(
                    f"{self.what}: entry {place} of item {row} is a {type(value).__name__}, expected a number, an "
                    "array or a tensor"
                )
        return tuple(item)
