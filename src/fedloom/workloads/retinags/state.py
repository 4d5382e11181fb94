"""What training a set of splats goes by: parameters, Adam's moments, statistics. A splat's number is its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedloom.workloads.retinags.splats import SHAPES

Table = dict[str, np.ndarray]
"""Arrays by the names of `splats.SHAPES`."""
STATISTICS = ("slopes", "views", "drawn")
"""(n,) each: sums of the norms of a splat's gradient in the picture, the views it was drawn in, its pixels in them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Splats with all that belongs to them."""

    ids: np.ndarray
    """(n,), int64."""
    values: Table
    first: Table
    """Adam's mean of gradients."""
    second: Table
    """Adam's mean of squared gradients."""
    statistics: Table
    """By the names of `STATISTICS`, float64."""

    @classmethod
    def fresh(cls, values: Mapping[str, np.ndarray]) -> Rows:
        """Return splats that nothing was learned of yet."""
        n = len(values["positions"])
        return cls(
            np.arange(n),
            dict(values),
            {name: np.zeros_like(values[name]) for name in SHAPES},
            {name: np.zeros_like(values[name]) for name in SHAPES},
            {name: np.zeros(n) for name in STATISTICS},
        )

    def tables(self) -> tuple[Table, Table, Table, Table]:
        """Return the four tables."""
        return self.values, self.first, self.second, self.statistics

    def chosen(self, which: np.ndarray) -> Rows:
        """Return some of the splats, by positions or booleans."""
        tables = ({name: value[which] for name, value in table.items()} for table in self.tables())
        return Rows(self.ids[which], *tables)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all arrays."""
        return self.ids.nbytes + sum(value.nbytes for table in self.tables() for value in table.values())


def gathered(parts: list[Rows]) -> Rows:
    """Return the splats of several parts as one set, ordered by their numbers."""
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids)
    tables = [
        {name: np.concatenate([each[name] for each in group])[order] for name in group[0]}
        for group in zip(*(part.tables() for part in parts), strict=True)
    ]
    return Rows(ids[order], *tables)
