"""Rows of other rows, and rows of clients whose examples are loaded one client at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from torch import Tensor

from fedloom.core.records import Array
from fedloom.workloads._base.rows import Batch, RowSource

_CLIENT = 32
"""Bits of a row number that count within a client, if each client's examples are loaded separately."""
_OPEN = 4
"""Number of clients whose examples are cached in memory, if each client's are loaded separately."""


@dataclass(frozen=True, slots=True)
class SomeRows:
    """Some rows of others, numbered from 0."""

    source: RowSource
    rows: Tensor
    """Row numbers, (n,), int64."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor) -> Batch:
        return self.source.batch(self.rows[rows])


@dataclass(frozen=True)
class ClientRows:
    """Each client's examples, loaded when they are needed: row i of client k has the number k * 2**32 + i."""

    load: Callable[[int], RowSource]
    _loaded: Callable[[int], RowSource] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_loaded", lru_cache(_OPEN)(self.load))

    def __len__(self) -> int:
        raise TypeError("the number of examples of all clients is unknown")

    def batch(self, rows: Tensor) -> Batch:
        client = int(rows[0]) >> _CLIENT
        return self._loaded(client).batch(rows - (client << _CLIENT))

    @property
    def sizes(self) -> Array:
        """Return the examples of each client: none, since they are not known here."""
        return np.zeros(0, np.int64)

    def label_counts(self, labels: Array, num_labels: int) -> Array:
        """Return the examples per class for each client: none, since they are not known here."""
        return np.zeros((0, num_labels), np.int64)

    def client(self, client: int) -> Array:
        """Return the row numbers of one client, (n,), int64."""
        return (client << _CLIENT) + np.arange(len(self._loaded(client)))
