"""The mean of each array over the clients that sent it."""

from __future__ import annotations

from typing import Self

import numpy as np

from fedloom.core.accumulators.base import Allocate
from fedloom.core.accumulators.sums import is_finite, not_finite, sum_dtype
from fedloom.core.errors import BadUpdate
from fedloom.core.records import MODEL, Array, Arrays, DType, Record, Update

WEIGHTS = "weights"
"""Group of an update: for an array of group `model` its weight, shape (), or one weight per row, shape (rows,)."""
MAX_ENTRY = 1e6
"""The largest weight an update may give an array or row."""


class MeanOfSenders:
    """Weighted mean of each array, or each row, over the clients that sent it; updates may lack arrays.

    The weight of client k's array is the update's weight times the array's entry in the update's group `weights`, 1
    where there is none. An entry with one number per row (the first axis) weighs rows apart. Entries are from 0 to
    `MAX_ENTRY`. Sums have `RunningMean`'s dtypes, sums of weights are float64.
    """

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self._sums: dict[str, Array] = {}
        self._weights: dict[str, Array] = {}
        self._dtypes: dict[str, DType] = {}

    def add(self, update: Update, weight: float, client: int) -> None:
        """Add one client's arrays.

        Raises:
            BadUpdate: an array is not finite, has another shape or dtype than before, or a weight is not one of it.
        """
        arrays, given = update.groups.get(MODEL, {}), update.groups.get(WEIGHTS, {})
        strange = sorted(set(update.groups) - {MODEL, WEIGHTS}) + sorted(set(given) - set(arrays))
        if strange:
            raise BadUpdate(f"client {client}: expected group {MODEL!r} and weights of its arrays, got also {strange}")
        for name, array in arrays.items():
            own = self._weight_of(name, array, given.get(name), client) * weight
            self._check(name, array, f"client {client}")
            if not is_finite(array):
                raise not_finite(client, MODEL, name)
            self._dtypes.setdefault(name, array.dtype)
            scaled = array.astype(sum_dtype(array.dtype)) * _by_rows(own, array.ndim).astype(sum_dtype(array.dtype))
            self._add(name, scaled, own)
        self.count += 1

    def merge(self, other: Self) -> None:
        for name, total in other._sums.items():  # all before any is added: a refused sum leaves nothing behind
            known = self._sums.get(name)
            if known is not None and (total.shape, other._dtypes[name]) != (known.shape, self._dtypes[name]):
                raise BadUpdate(
                    f"two partial sums differ in the shape or dtype of array {name!r}; they cannot be added"
                )
        for name, total in other._sums.items():
            self._dtypes.setdefault(name, other._dtypes[name])
            self._add(name, total, other._weights[name])
        self.count += other.count

    def value(self, default: Arrays) -> dict[str, Array]:
        """Return the means, in the dtypes of the updates; `default` for arrays and rows no client sent.

        Args:
            default: every array of the result, such as the global model's; one of each that may have been sent.

        Raises:
            BadUpdate: an array was sent that is not among them, or has another shape.
        """
        for name, total in self._sums.items():
            if name not in default or default[name].shape != total.shape:
                raise BadUpdate(f"array {name!r} of shape {total.shape} was sent, which the model does not have")
        return {name: self._mean(name, array) if name in self._sums else array for name, array in default.items()}

    def weights(self) -> Arrays:
        """Return the sum of weights by array: float64, shape () or (rows,); 0 for rows no client sent."""
        return self._weights

    def record(self) -> Record:
        dtypes = {name: dtype.name for name, dtype in self._dtypes.items()}
        return Record({MODEL: self._sums, WEIGHTS: self._weights}, {"count": self.count, "dtypes": dtypes})

    @classmethod
    def from_record(cls, record: Record) -> Self:
        self = cls()
        self.count = int(record.info["count"])
        self._sums = {name: np.array(array) for name, array in record.groups.get(MODEL, {}).items()}
        self._weights = {name: np.array(array) for name, array in record.groups.get(WEIGHTS, {}).items()}
        self._dtypes = {name: np.dtype(record.info["dtypes"][name]) for name in self._sums}
        return self

    def _weight_of(self, name: str, array: Array, given: Array | None, client: int) -> Array:
        own = np.asarray(1.0 if given is None else given, np.float64)
        fits = own.shape == () or (array.ndim > 0 and own.shape == array.shape[:1])
        if not fits or not ((own >= 0) & (own <= MAX_ENTRY)).all():
            raise BadUpdate(
                f"client {client}: weights of array {name!r} must be one number or one per row {array.shape[:1]}, "
                f"each from 0 to {MAX_ENTRY:g}; got shape {own.shape}"
            )
        return own

    def _check(self, name: str, array: Array, who: str) -> None:
        known = self._sums.get(name)
        if known is not None and (array.shape, array.dtype) != (known.shape, self._dtypes[name]):
            raise BadUpdate(
                f"{who}: array {name!r} is {array.dtype} {array.shape}, the clients before sent {self._dtypes[name]} "
                f"{known.shape}"
            )

    def _add(self, name: str, scaled: Array, weight: Array) -> None:
        if name not in self._sums:
            self._sums[name], self._weights[name] = np.array(scaled), np.array(weight, np.float64)
            return
        np.add(self._sums[name], scaled, out=self._sums[name])
        self._weights[name] = np.asarray(self._weights[name] + weight)

    def _mean(self, name: str, default: Array) -> Array:
        total, dtype = self._sums[name], self._dtypes[name]
        weight = np.broadcast_to(_by_rows(self._weights[name], total.ndim), total.shape)
        mean = np.divide(total, weight, out=np.array(default, np.float64), where=weight > 0)
        return np.asarray((np.rint(mean) if dtype.kind in "iub" else mean).astype(dtype))


def _by_rows(weight: Array, ndim: int) -> Array:
    """Return a weight so that it multiplies an array row by row."""
    return weight.reshape(weight.shape + (1,) * (ndim - weight.ndim))
