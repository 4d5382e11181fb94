"""A table of labels whose selections are row numbers: what partitioners see instead of the data."""

from __future__ import annotations

import datasets
import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


class RowTable(datasets.Dataset):  # type: ignore[misc]  # partitioners insist on the type; it has no type hints
    """The part of `datasets.Dataset` that partitioners of flwr-datasets use, without Arrow behind it.

    A selection from a real data set costs a millisecond, so 10,000 clients would cost ten seconds; here it is one
    NumPy index. The base class's constructor is not called: nothing of it is used.
    """

    def __init__(self, labels: Rows, rows: Rows) -> None:
        self._labels, self._rows = labels, rows

    @property
    def num_rows(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"RowTable({len(self._rows)} rows)"

    def __getitem__(self, column: str) -> Rows:
        return self._labels[self._rows]

    def unique(self, column: str) -> list[int]:
        """Return the distinct labels."""
        return [int(label) for label in np.unique(self._labels)]

    def sort(self, column: str) -> RowTable:
        """Return the table in order of label."""
        return RowTable(self._labels, self._rows[np.argsort(self[column], kind="stable")])

    def select(self, indices: npt.ArrayLike) -> Rows:
        """Return the row numbers at these places."""
        return self._rows[np.asarray(indices, np.int64)]
