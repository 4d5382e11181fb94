"""Exact sums of integers, for vectors that only mean something once they are added up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from fedloom.core.accumulators.base import Allocate
from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Record, Update


class IntegerSum:
    """Sum of integer arrays modulo 2**bits of their dtype, whatever the grouping: masks that cancel vanish exactly.

    Updates are added unweighted: a client whose vector should count more scales it before it masks it.
    """

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self._sums: dict[str, dict[str, Array]] = {}

    def add(self, update: Update, weight: float, client: int) -> None:
        """Add one client's integers.

        Raises:
            BadUpdate: an array is not of an integer dtype, or differs in name, shape or dtype from those before it.
        """
        for group, name, array in Record(update.groups).items():
            if array.dtype.kind not in "iu":
                raise BadUpdate(
                    f"client {client}: array {name!r} of group {group!r} has dtype {array.dtype}; accumulator "
                    "'integers' adds integer dtypes only"
                )
        if not self.count:
            self._sums = _copied(update.groups)
        else:
            self._check(update.groups, f"client {client}")
            self._add(update.groups)
        self.count += 1

    def merge(self, other: Self) -> None:
        if not other.count:
            return
        if not self.count:
            self._sums = _copied(other._sums)
        else:
            self._check(other._sums, "a partial sum")
            self._add(other._sums)
        self.count += other.count

    def value(self) -> Mapping[str, Mapping[str, Array]]:
        """Return the sums, in the dtypes of the updates."""
        return self._sums

    def record(self) -> Record:
        return Record(self._sums, {"count": self.count})

    @classmethod
    def from_record(cls, record: Record) -> Self:
        self = cls()
        self.count, self._sums = int(record.info["count"]), _copied(record.groups)
        return self

    def _check(self, groups: Mapping[str, Mapping[str, Array]], who: str) -> None:
        mine = {(g, n): (a.shape, a.dtype) for g, n, a in Record(self._sums).items()}
        theirs = {(g, n): (a.shape, a.dtype) for g, n, a in Record(groups).items()}
        if mine != theirs:
            odd = sorted(f"{g}/{n}" for g, n in mine.keys() | theirs.keys() if mine.get((g, n)) != theirs.get((g, n)))
            raise BadUpdate(f"{who}: arrays {odd} differ in name, shape or dtype from those before")

    def _add(self, groups: Mapping[str, Mapping[str, Array]]) -> None:
        with np.errstate(over="ignore"):
            for group, name, array in Record(groups).items():
                np.add(self._sums[group][name], array, out=self._sums[group][name])


def _copied(groups: Mapping[str, Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
    return {group: {name: np.array(array) for name, array in arrays.items()} for group, arrays in groups.items()}
