"""How updates are folded where they arise: running means, and lists for rules that need every update apart.

An accumulator is made where the clients run, filled in cohort order (`add`), sent as a record, and merged on the
server in group order (`merge`). It owns its arrays and may change them in place; nothing else in the platform does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Groups, Mean, Record, Update

_BLOCK = 1 << 18
"""Elements handled at a time when scaling into a sum: the scratch stays in a core's cache."""

Allocate = Callable[[Record], Mapping[str, Mapping[str, Array]]]
"""Writable arrays shaped like a record's: how an accumulator is put straight into shared memory."""


@runtime_checkable
class Accumulator(Protocol):
    """A fold in progress. `count` says how many updates it holds."""

    count: int

    def add(self, update: Update, weight: float, client: int) -> None:
        """Fold one client's update, `weight` >= 0. The update's arrays are not kept.

        Raises:
            BadUpdate: the update is not finite, or unlike those before it. The accumulator is spoilt then: start afresh
                without this client.
        """

    def merge(self, other: Self) -> None:
        """Fold another accumulator of the same kind, whose clients come after this one's."""

    def record(self) -> Record:
        """The accumulator as a record (no copies; valid until the next `add` or `merge`)."""

    @classmethod
    def from_record(cls, record: Record) -> Self:
        """The inverse of `record`. The arrays are taken over where they are writable, else copied on first change."""


def not_finite(client: int, group: str, name: str) -> BadUpdate:
    """The error for an update with NaN or infinity in it."""
    return BadUpdate(
        f"client {client}: array {name!r} of group {group!r} is not finite (NaN or infinity). Training diverged there; "
        "try a smaller learning rate or gradient clipping. Nothing of this update was aggregated"
    )


def sum_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype a sum of `dtype` is kept in: float32 for short floats and int8, float64 for other integers."""
    if dtype.kind in "iub":
        return np.dtype(np.float32 if dtype.itemsize == 1 else np.float64)
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def scaled_add(total: Array, values: Array, weight: float, *, first: bool = False) -> bool:
    """Do total += weight * values (or total = weight * values where `first`), in blocks that stay in a core's cache.

    Returns:
        Whether every product was finite; the check reads the block while it is still in the cache.
    """
    flat, addend = total.reshape(-1), np.ascontiguousarray(values).reshape(-1)
    scale = total.dtype.type(weight)
    scratch = np.empty(0 if first else min(_BLOCK, flat.size), total.dtype)
    finite = True
    for start in range(0, flat.size, _BLOCK):
        part = flat[start : start + _BLOCK]
        product = part if first else scratch[: part.size]
        np.multiply(addend[start : start + _BLOCK], scale, out=product, casting="unsafe")
        finite = finite and is_finite(product)
        if not first:
            np.add(part, product, out=part)
    return finite


def is_finite(values: Array) -> bool:
    """Whether a float array has no NaN and no infinity (a dot product first: exact search only where that is odd)."""
    if values.dtype.kind in "iub":
        return True
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = float(np.dot(flat, flat))
    return math.isfinite(squares) or bool(np.isfinite(flat).all())


class RunningMean:
    """Weighted mean of updates, kept as a weighted sum and the sum of weights.

    Sums are float32 for float32, float16, bfloat16 and int8 arrays, float64 for the rest; `value` casts back (integers
    are rounded). Memory is one set of arrays, whatever the number of clients.
    """

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self.weight = 0.0
        self._allocate = allocate
        self._sums: Mapping[str, Mapping[str, Array]] = {}
        self._dtypes: dict[str, dict[str, np.dtype[Any]]] = {}
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
            into = _empty_like(self._sums) if self._borrowed else self._sums
            for group, arrays in other._sums.items():
                for name, array in arrays.items():
                    np.add(self._sums[group][name], array, out=into[group][name])
            self._sums, self._borrowed = into, False
        self.weight += other.weight
        self.count += other.count

    def value(self, out: Mapping[str, Mapping[str, Array]] | None = None) -> dict[str, dict[str, Array]]:
        """The mean, in the dtypes the updates came in.

        Args:
            out: arrays to write into, shaped like the updates; fresh ones where it is not given.

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
        self._sums = self._allocate(Record(shapes)) if self._allocate else _empty_like(shapes)

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
                        f"before sent {want}. A mean needs equal shapes; does another strategy's rule run there?"
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
        """Copy sums that belong to a record or to another accumulator before they are changed."""
        if self._borrowed:
            self._sums = {g: {n: np.array(array) for n, array in arrays.items()} for g, arrays in self._sums.items()}
            self._borrowed = False

    def _match(self, other: Self) -> None:
        mine = {(g, n): array.shape for g, n, array in Record(self._sums).items()}
        theirs = {(g, n): array.shape for g, n, array in Record(other._sums).items()}
        if mine != theirs:
            odd = sorted(
                {key[1] for key in mine.keys() ^ theirs.keys()}
                | {key[1] for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]}
            )
            raise BadUpdate(f"two partial sums differ in the names or shapes of arrays {odd}; they cannot be added")


class UpdateList:
    """Every update apart, in cohort order, for rules that need them so (median, Krum, Flower strategies)."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self.updates: list[tuple[int, Update]] = []

    def add(self, update: Update, weight: float, client: int) -> None:
        for group, name, array in Record(update.groups).items():
            if not is_finite(array):
                raise not_finite(client, group, name)
        kept = {g: {n: np.array(array) for n, array in arrays.items()} for g, arrays in update.groups.items()}
        self.updates.append(
            (client, Update(num_examples=update.num_examples, groups=kept, metrics=update.metrics, info=update.info))
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


BUILTIN: Mapping[str, type[RunningMean] | type[UpdateList] | type[MetricsOnly]] = {
    "mean": RunningMean,
    "separate": UpdateList,
    "metrics": MetricsOnly,
}


def _empty_like(groups: Groups) -> dict[str, dict[str, Array]]:
    return {g: {n: np.empty(array.shape, array.dtype) for n, array in arrays.items()} for g, arrays in groups.items()}
