"""Facts about examples: their classes, if their targets are classes, and their digest."""

from __future__ import annotations

import hashlib
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads._base.columns import converted
from fedloom.workloads._base.dataset_rows import DatasetRows
from fedloom.workloads._base.rows import RowSource, TensorRows
from fedloom.workloads._torch.arrays import as_array


@runtime_checkable
class HasTargets(Protocol):
    """A dataset that lists its targets, as those of torchvision do."""

    targets: object
    """One for each item."""


def classes_of(source: RowSource) -> Array:
    """Return the class of each example, (n,), int64; empty if targets are not integers, or several each."""
    targets = source.targets if isinstance(source, TensorRows) else all_targets(source)
    if targets.is_floating_point() or targets.dim() != 1 or (len(targets) and int(targets.min()) < 0):
        return np.zeros(0, np.int64)
    return np.asarray(targets.cpu().numpy(), np.int64)


def all_targets(source: RowSource) -> Tensor:
    """Return the targets of all rows, read one after the other unless a dataset lists them as `targets`."""
    if isinstance(source, DatasetRows) and isinstance(source.dataset, HasTargets):
        found = torch.as_tensor(source.dataset.targets)
        if len(found) == len(source):
            return converted(found, targets=True)
    return torch.cat([source.batch(torch.arange(row, row + 1))[1].cpu() for row in range(len(source))])


def digest_of_rows(source: RowSource) -> str:
    """Return the digest of a table's values; of a dataset's classes and length alone."""
    found = hashlib.sha256()
    if isinstance(source, TensorRows):
        for tensor in (*source.inputs, source.targets):
            array = np.ascontiguousarray(as_array(tensor.cpu()))
            found.update(f"{array.dtype}{array.shape}".encode())
            found.update(array.data)
    else:
        found.update(f"{len(source)}".encode())
        found.update(classes_of(source).tobytes())
    return found.hexdigest()
