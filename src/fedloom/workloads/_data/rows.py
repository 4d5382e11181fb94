"""The shard of workloads whose data is rows: numbers of training examples, or of test examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from fedloom.core.records import Array


@dataclass(frozen=True, slots=True)
class RowShard:
    """Rows of the training set (a client's), or of the test set."""

    rows: Array
    """Row numbers, shape (n,), int64."""
    held_out: bool = False
    """Whether they are rows of the test set."""
    part: int | None = None
    """Number of the part, of a test set."""

    @property
    def num_examples(self) -> int:
        """Return the examples in the shard, n."""
        return len(self.rows)

    @property
    def is_empty(self) -> bool:
        """Return whether there are no rows."""
        return not len(self.rows)

    @classmethod
    def test_part(cls, num_test: int, part: int, parts: int) -> Self:
        """Return part `part` of `parts` of a test set, 0 <= part < parts: consecutive rows.

        Args:
            num_test: examples in the test set.
            part: which part.
            parts: how many there are.
        """
        return cls(np.arange(num_test * part // parts, num_test * (part + 1) // parts), held_out=True, part=part)
