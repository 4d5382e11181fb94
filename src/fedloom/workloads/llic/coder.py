"""Range coding of symbols by integer tables, with an escape for those outside a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import constriction
import numpy as np

from fedloom.core.records import Array
from fedloom.workloads.llic.container import StreamInvalid
from fedloom.workloads.llic.tables import TOTAL, Table

_LIMB = 2**10
_OFFSET = 2**19
"""An escaped symbol s is coded as s + 2^19, in two parts of ten bits."""
_Model = constriction.stream.model.Categorical


class SymbolCoder(Protocol):
    """Codes symbols one way or the other."""

    def __call__(self, symbols: Array | None, indices: Array) -> Array:
        """Return the symbols, (n,), int64.

        Args:
            symbols: to encode, (n,); None where they are decoded.
            indices: table of each, (n,), int64.
        """


class Models:
    """The coder's models of tables, made on first use."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self._made: dict[int, object] = {}

    def __getitem__(self, index: int) -> object:
        if index not in self._made:
            probabilities = self.tables[index].weights.astype(np.float64) / TOTAL
            self._made[index] = _Model(probabilities, perfect=False)
        return self._made[index]


class Encoder:
    """Writes symbols.

    Args:
        models: of the tables.
    """

    def __init__(self, models: Models) -> None:
        self._models, self._coder = models, constriction.stream.queue.RangeEncoder()

    def __call__(self, symbols: Array | None, indices: Array) -> Array:
        if symbols is None:
            raise ValueError("expected symbols to encode")
        escaped = list[int]()
        for index in np.unique(indices).tolist():
            table, chosen = self._models.tables[index], symbols[indices == index]
            places = chosen - table.first
            outside = (places < 0) | (places >= table.count)
            self._coder.encode(np.where(outside, table.count, places).astype(np.int32), self._models[index])
            escaped += (chosen[outside] + _OFFSET).tolist()
        if escaped:
            limbs = np.array([limb for each in escaped for limb in divmod(each, _LIMB)], np.int32)
            self._coder.encode(limbs, constriction.stream.model.Uniform(_LIMB))
        return symbols

    def finish(self) -> bytes:
        """Return what was written."""
        return bytes(self._coder.get_compressed().astype("<u4").tobytes())


class Decoder:
    """Reads symbols.

    Args:
        models: of the tables.
        data: what an encoder with the same models wrote.
    """

    def __init__(self, models: Models, data: bytes) -> None:
        self._models = models
        self._coder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))

    def __call__(self, symbols: Array | None, indices: Array) -> Array:
        found, outside = np.zeros(len(indices), np.int64), list[Array]()
        for index in np.unique(indices).tolist():
            table, where = self._models.tables[index], np.flatnonzero(indices == index)
            places = self._read(self._models[index], len(where))
            found[where] = places + table.first
            outside.append(where[places == table.count])
        escaped = np.concatenate(outside) if outside else np.zeros(0, np.int64)
        if len(escaped):
            high, low = self._read(constriction.stream.model.Uniform(_LIMB), 2 * len(escaped)).reshape(-1, 2).T
            found[escaped] = high * _LIMB + low - _OFFSET
        return found

    def _read(self, model: object, count: int) -> Array:
        try:
            return np.asarray(self._coder.decode(model, count), np.int64)
        except AssertionError as exc:  # how constriction reports data that no encoder has written
            raise StreamInvalid("the symbols cannot be decoded: the stream is damaged") from exc
