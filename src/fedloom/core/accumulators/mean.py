"""The weighted mean of updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from fedloom.core.accumulators.base import Allocate
from fedloom.core.accumulators.sums import empty_like, not_finite, scaled_add, sum_dtype
from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, DType, Groups, Record, Update


class RunningMean:
    """Weighted mean of updates, stored as a weighted sum and the sum of weights.

    Sums are float32 for float32, float16, bfloat16 and int8 arrays, float64 for the rest; `value` casts back (integers
    are rounded). Memory is one set of arrays, whatever the number of clients.
    """

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self.weight = 0.0
        self._allocate = allocate
        self._sums: Mapping[str, Mapping[str, Array]] = {}
        self._dtypes: dict[str, dict[str, DType]] = {}
        self._borrowed = False

    def add(self, update: Update, weight: float, client: int) -> None:
        if not self.count:
            self._start(update.groups)
        else:
            self._check(update, client)
            self._own()
        for group, arrays in update.groups.items():
            for name, array in arrays.items():
                if not scaled_add(self._sums[group][name], array, weight, first=not self.count):
                    raise not_finite(client, group, name)
        self.weight += weight
        self.count += 1

    def merge(self, other: Self) -> None:
        if not other.count:
            return
        if not self.count:
            self._sums, self._dtypes, self._borrowed = other._sums, other._dtypes, True
        else:
            self._match(other)
            into = empty_like(self._sums) if self._borrowed else self._sums
            for group, arrays in other._sums.items():
                for name, array in arrays.items():
                    np.add(self._sums[group][name], array, out=into[group][name])
            self._sums, self._borrowed = into, False
        self.weight += other.weight
        self.count += other.count

    def value(self, out: Mapping[str, Mapping[str, Array]] | None = None) -> dict[str, dict[str, Array]]:
        """Return the mean, in the dtypes of the updates.

        Args:
            out: arrays to write into, shaped like the updates; fresh ones if None.

        Raises:
            BadUpdate: every client's weight was zero, so there is no mean.
        """
        if not self.weight > 0:
            raise BadUpdate(
                f"the {self.count} updates of this round have total weight {self.weight}: expected a positive sum. "
                "Do the clients have examples?"
            )
        means: dict[str, dict[str, Array]] = {}
        for group, arrays in self._sums.items():
            means[group] = {}
            for name, total in arrays.items():
                dtype = self._dtypes[group][name]
                target = out[group][name] if out is not None else np.empty(total.shape, dtype)
                if dtype.kind in "iub":
                    np.copyto(target, np.rint(total / self.weight), casting="unsafe")
                elif dtype == total.dtype:
                    np.divide(total, total.dtype.type(self.weight), out=target)
                else:
                    np.copyto(target, (total / total.dtype.type(self.weight)).astype(dtype))
                means[group][name] = target
        return means

    def record(self) -> Record:
        dtypes = {
            group: {name: dtype.name for name, dtype in named.items() if dtype != self._sums[group][name].dtype}
            for group, named in self._dtypes.items()
        }
        return Record(self._sums, {"weight": self.weight, "count": self.count, "dtypes": dtypes})

    @classmethod
    def from_record(cls, record: Record) -> Self:
        self = cls()
        self.count, self.weight = int(record.info["count"]), float(record.info["weight"])
        self._sums, self._borrowed = record.groups, True
        named = record.info["dtypes"]
        self._dtypes = {
            group: {name: np.dtype(named.get(group, {}).get(name, array.dtype)) for name, array in arrays.items()}
            for group, arrays in record.groups.items()
        }
        return self

    def _start(self, groups: Groups) -> None:
        self._dtypes = {g: {n: array.dtype for n, array in arrays.items()} for g, arrays in groups.items()}
        shapes = {
            g: {n: np.broadcast_to(np.zeros((), sum_dtype(array.dtype)), array.shape) for n, array in arrays.items()}
            for g, arrays in groups.items()
        }
        self._sums = self._allocate(Record(shapes)) if self._allocate else empty_like(shapes)

    def _check(self, update: Update, client: int) -> None:
        for group, named in self._dtypes.items():
            arrays = update.groups.get(group, {})
            if arrays.keys() != named.keys():
                odd = sorted(arrays.keys() ^ named.keys())
                raise BadUpdate(f"client {client}: group {group!r} differs from the clients before in arrays {odd}")
            for name, array in arrays.items():
                want = self._sums[group][name].shape
                if array.shape != want:
                    raise BadUpdate(
                        f"client {client}: array {name!r} of group {group!r} has shape {array.shape}, the clients "
                        f"before sent {want}. Updates must have the global model's shapes: check what `train` returns"
                    )
                if array.dtype != named[name]:
                    raise BadUpdate(
                        f"client {client}: array {name!r} of group {group!r} has dtype {array.dtype}, the clients "
                        f"before sent {named[name]}. Do all clients train in the same precision?"
                    )
        if update.groups.keys() != self._dtypes.keys():
            raise BadUpdate(
                f"client {client}: groups {sorted(update.groups)}, the clients before sent {sorted(self._dtypes)}"
            )

    def _own(self) -> None:
        """Copy sums shared with a record or another accumulator before changing them."""
        if self._borrowed:
            self._sums = {g: {n: np.array(array) for n, array in arrays.items()} for g, arrays in self._sums.items()}
            self._borrowed = False

    def _match(self, other: Self) -> None:
        mine = {(g, n): (array.shape, array.dtype) for g, n, array in Record(self._sums).items()}
        theirs = {(g, n): (array.shape, array.dtype) for g, n, array in Record(other._sums).items()}
        if mine != theirs:
            odd = sorted(
                {key[1] for key in mine.keys() ^ theirs.keys()}
                | {key[1] for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}
            )
            raise BadUpdate(f"two partial sums differ in names, shapes or dtypes of arrays {odd}; they cannot be added")
