"""The accumulator of the low-rank strategies: means of heads and factors, and the mean of the products B_k A_k.

Clients may differ in rank: a smaller factor counts as one with zeros below. A layer's products are stored as stacked
factors while those are smaller than the matrix, then as the matrix, so memory is bounded for any cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from fedloom.adapters.names import LORA_A, LORA_B
from fedloom.core.accumulators import Allocate, RunningMean, is_finite, not_finite
from fedloom.core.errors import BadUpdate
from fedloom.core.records import Array, Arrays, Groups, Record, Update
from fedloom.strategies._low_rank.products import MeanProduct
from fedloom.strategies._low_rank.wire import WIRE, unpack

_STACK_A, _STACK_B, _MATRIX = "stacked a", "stacked b", "matrix"


@dataclass(slots=True)
class _Product:
    """Σ w_k B_k A_k of one layer."""

    a: list[Array]
    b: list[Array]
    matrix: Array | None = None

    def add(self, a: Array, b: Array) -> None:
        """Add b @ a; the arrays are retained."""
        self.a.append(a)
        self.b.append(b)
        if sum(map(len, self.a)) * (a.shape[1] + len(b)) > a.shape[1] * len(b):
            stacked = np.concatenate(self.b, axis=1) @ np.concatenate(self.a)
            self.matrix = stacked if self.matrix is None else self.matrix + stacked
            self.a.clear()
            self.b.clear()

    def add_all(self, other: _Product) -> None:
        """Add another sum."""
        if other.matrix is not None:
            self.matrix = other.matrix if self.matrix is None else self.matrix + other.matrix
        for a, b in zip(other.a, other.b, strict=True):
            self.add(a, b)


class Accumulator:
    """Weighted sums of what clients send in adapter rounds (or of whole models, which have group `model` alone)."""

    def __init__(self, allocate: Allocate | None = None) -> None:
        self.count = 0
        self.weight = 0.0
        self._rest = RunningMean()
        self._sums: dict[str, dict[str, Array]] = {}
        self._products: dict[str, _Product] = {}

    def add(self, update: Update, weight: float, client: int) -> None:
        groups = dict(unpack(update.groups, update.info)) if WIRE in update.info else dict(update.groups)
        factors = {group: groups.pop(group) for group in (LORA_A, LORA_B) if group in groups}
        self._check(factors, client)
        self._rest.add(replace(update, groups=groups), weight, client)
        for group, arrays in factors.items():
            sums = self._sums.setdefault(group, {})
            for name, array in arrays.items():
                sums[name] = _sum(sums.get(name), array * np.float32(weight))
        if LORA_A in factors:
            for name, b in factors[LORA_B].items():
                a = np.array(factors[LORA_A][name], np.float32)
                self._products.setdefault(name, _Product([], [])).add(a, b * np.float32(weight))
        self.weight += weight
        self.count += 1

    def merge(self, other: Self) -> None:
        if not other.count:
            return
        if self.count and {g: a.keys() for g, a in self._sums.items()} != {g: a.keys() for g, a in other._sums.items()}:
            raise BadUpdate("two partial sums are about different layers' factors; they cannot be added")
        self._rest.merge(other._rest)
        for group, arrays in other._sums.items():
            sums = self._sums.setdefault(group, {})
            for name, array in arrays.items():
                sums[name] = _sum(sums.get(name), array)
        for name, product in other._products.items():
            self._products.setdefault(name, _Product([], [])).add_all(product)
        self.weight += other.weight
        self.count += other.count

    def value(self) -> Groups:
        """Return the means: factors zero-padded to the largest rank, float32; other arrays as in `RunningMean`.

        Raises:
            BadUpdate: every client's weight was zero, so there is no mean.
        """
        means: dict[str, Arrays] = dict(self._rest.value())
        for group, sums in self._sums.items():
            means[group] = {name: total / np.float32(self._positive()) for name, total in sums.items()}
        return means

    def products(self) -> dict[str, MeanProduct]:
        """Return M = Σ p_k B_k A_k by layer; empty if A is not sent."""
        weight = np.float32(self._positive()) if self._products else np.float32(1)
        return {name: _mean(product, weight, self._sums, name) for name, product in self._products.items()}

    def record(self) -> Record:
        rest = self._rest.record()
        groups: dict[str, Mapping[str, Array]] = {f"rest:{group}": arrays for group, arrays in rest.groups.items()}
        groups |= {f"sum:{group}": arrays for group, arrays in self._sums.items()}
        stacked = {name: product for name, product in self._products.items() if product.a}
        groups[_STACK_A] = {name: np.concatenate(product.a) for name, product in stacked.items()}
        groups[_STACK_B] = {name: np.concatenate(product.b, axis=1) for name, product in stacked.items()}
        groups[_MATRIX] = {n: product.matrix for n, product in self._products.items() if product.matrix is not None}
        info = {"count": self.count, "weight": self.weight, "rest": rest.info, "groups": list(rest.groups)}
        return Record(groups, {**info, "sums": list(self._sums), "layers": list(self._products)})

    @classmethod
    def from_record(cls, record: Record) -> Self:
        self = cls()
        self.count, self.weight = int(record.info["count"]), float(record.info["weight"])
        rest = {group: record.groups[f"rest:{group}"] for group in record.info["groups"]}
        self._rest = RunningMean.from_record(Record(rest, record.info["rest"]))
        self._sums = {group: dict(record.groups[f"sum:{group}"]) for group in record.info["sums"]}
        for name in record.info["layers"]:
            a, b = record.groups[_STACK_A].get(name), record.groups[_STACK_B].get(name)
            pair = ([a], [b]) if a is not None and b is not None else ([], [])
            self._products[name] = _Product(*pair, record.groups[_MATRIX].get(name))
        return self

    def _check(self, factors: Groups, client: int) -> None:
        """Refuse factors that are not finite, not in pairs, or of other layers than those before."""
        for group, arrays in factors.items():
            for name, array in arrays.items():
                if not is_finite(array):
                    raise not_finite(client, group, name)
            known = self._sums.get(group)
            if self.count and (known is None or known.keys() != arrays.keys()):
                odd = sorted(arrays.keys() ^ (known or {}).keys())
                raise BadUpdate(f"client {client}: group {group!r} differs from the clients before in layers {odd}")
        if self.count and factors.keys() != self._sums.keys():
            raise BadUpdate(f"client {client}: factors {sorted(factors)}, the clients before sent {sorted(self._sums)}")
        a, b = factors.get(LORA_A), factors.get(LORA_B)
        if a is not None and (b is None or a.keys() != b.keys() or any(len(a[n]) != b[n].shape[1] for n in a)):
            raise BadUpdate(f"client {client}: its factors A and B are not pairs of one rank for each layer")

    def _positive(self) -> float:
        if not self.weight > 0:
            raise BadUpdate(
                f"the {self.count} updates of this round have total weight {self.weight}: expected a positive sum. "
                "Do the clients have examples?"
            )
        return self.weight


def _sum(total: Array | None, addend: Array) -> Array:
    """Total + addend, the smaller one padded with zeros; a fresh array, or `total` changed."""
    if total is None:
        return np.array(addend, np.float32)
    if total.shape == addend.shape and total.flags.writeable:
        np.add(total, addend, out=total)
        return total
    shape = tuple(max(sides) for sides in zip(total.shape, addend.shape, strict=True))
    result = np.zeros(shape, np.float32)
    for part in (total, addend):
        result[tuple(slice(side) for side in part.shape)] += part
    return result


def _mean(product: _Product, weight: np.float32, sums: Mapping[str, Arrays], name: str) -> MeanProduct:
    out, in_ = len(sums[LORA_B][name]), sums[LORA_A][name].shape[1]
    a = np.concatenate(product.a) if product.a else np.zeros((0, in_), np.float32)
    b = np.concatenate(product.b, axis=1) / weight if product.b else np.zeros((out, 0), np.float32)
    return MeanProduct(a, b, None if product.matrix is None else product.matrix / weight)
