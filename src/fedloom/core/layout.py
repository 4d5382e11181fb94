"""Positions of arrays in a frame: planned from a record to be written, or read from a received header.

A run sends frames of few shapes again and again, so both are cached for small headers.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from fedloom.core.errors import BadFrame
from fedloom.core.records import Array, DType, Info, JsonObject, Record

ALIGNMENT = 64
_REMEMBERED_HEADER_BYTES = 16 << 10
"""Headers up to this size are planned and read once."""

_DTYPES: dict[str, DType] = {
    code: np.dtype(kind)
    for code, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U64": np.uint64,
        "U32": np.uint32,
        "U16": np.uint16,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """Position of one array in a frame."""

    group: str
    name: str
    dtype: DType
    shape: tuple[int, ...]
    start: int
    """Offset from the beginning of the frame; bytes."""

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The plan of a frame: its header bytes, its arrays' places, its size."""

    header: bytes
    slots: tuple[Slot, ...]
    size: int

    @classmethod
    def of(cls, record: Record, data_start: int = 0) -> Layout:
        """Return the layout a record is written with.

        Args:
            record: what will be written; only dtypes, shapes and `info` matter here.
            data_start: lower limit of the arrays' position; bytes. Leaves space for a header that is not yet final.

        Raises:
            BadFrame: an array's dtype has no code in the format.
        """
        arrays = tuple((group, name, array.dtype, array.shape) for group, name, array in record.items())
        info = info_text(record.info)
        small = 160 * len(arrays) + len(info) < _REMEMBERED_HEADER_BYTES
        return (_planned if small else _plan)(tuple(record.groups), arrays, info, data_start)

    def views(self, buffer: memoryview) -> dict[str, dict[str, Array]]:
        """Return the frame's arrays as views of `buffer`, grouped, in the frame's order of data."""
        groups: dict[str, dict[str, Array]] = {}
        for slot in self.slots:
            view: Array = np.ndarray(slot.shape, slot.dtype, buffer, slot.start)
            groups.setdefault(slot.group, {})[slot.name] = view
        return groups


_Signature = tuple[tuple[str, str, DType, tuple[int, ...]], ...]
"""Yield group, name, dtype and shape of every array."""


def info_text(info: Info) -> str:
    """Return a record's info as JSON.

    Raises:
        BadFrame: it is not JSON values.
    """
    try:
        return json.dumps(info, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as exc:
        raise BadFrame(f"a record's info must be JSON values: {exc}; its keys are {list(info)}") from exc


def _plan(groups: tuple[str, ...], arrays: _Signature, info: str, data_start: int) -> Layout:
    single = len(groups) == 1
    keys: dict[str, list[str]] = {}
    for group, name, _, _ in arrays:
        key = name if single else f"{group}/{name}"
        if key in keys or key == "__metadata__":
            raise BadFrame(f"the key {key!r} occurs twice; rename group {group!r} or array {name!r}")
        keys[key] = [group, name]
    places: JsonObject = {}
    slots: list[Slot] = []
    offset = 0
    for group, name, dtype, shape in sorted(arrays, key=lambda array: -array[2].itemsize):
        code = _CODES.get(dtype)
        if code is None:
            raise BadFrame(
                f"array {name!r} of group {group!r} has dtype {dtype}, which cannot be sent. "
                f"Use one of {', '.join(sorted(known.name for known in _CODES))}"
            )
        slots.append(slot := Slot(group, name, dtype, shape, offset))
        end = offset + slot.num_bytes
        places[name if single else f"{group}/{name}"] = {
            "dtype": code,
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = f'{{"groups":{json.dumps(groups)},"keys":{json.dumps(keys)},"info":{info}}}'
    body = json.dumps({"__metadata__": {"fedloom": text}, **places}, separators=(",", ":")).encode()
    data_start = max(data_start, -(-(8 + len(body)) // ALIGNMENT) * ALIGNMENT)
    header = (data_start - 8).to_bytes(8, "little") + body.ljust(data_start - 8)
    return Layout(header, tuple(replace(slot, start=data_start + slot.start) for slot in slots), data_start + offset)


_planned = functools.lru_cache(maxsize=256)(_plan)


@dataclass(frozen=True, slots=True)
class Described:
    """Content of a frame's header."""

    layout: Layout
    groups: tuple[str, ...]
    order: tuple[tuple[str, str], ...]
    """Groups and names of the arrays, as in the record."""
    info: Info


def _described(header: bytes) -> Described:
    """Parse a header (its JSON, without the length before it) and validate every field."""
    entries = _entries(header)
    meta = _metadata(entries)
    expected = data_start = 8 + len(header)
    slots = sorted((_slot(key, entry, meta, data_start) for key, entry in entries.items()), key=lambda s: s.start)
    for slot in slots:
        if slot.start != expected:
            raise BadFrame(f"array {slot.name!r} starts at byte {slot.start}, expected {expected}: gap or overlap")
        expected += slot.num_bytes
    order = tuple((group, name) for group, name in meta["keys"].values())
    return Described(Layout(b"", tuple(slots), expected), tuple(meta["groups"]), order, meta["info"])


_remembered = functools.lru_cache(maxsize=256)(_described)


def read_header(header: bytes) -> Described:
    """Parse a header: its JSON, without the preceding length.

    Raises:
        BadFrame: arrays that overlap, leave gaps, are mistyped or otherwise malformed; the message says which.
    """
    return (_remembered if len(header) < _REMEMBERED_HEADER_BYTES else _described)(header)


def _entries(header: bytes) -> JsonObject:
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise BadFrame(f"frame header is not JSON: {exc}") from exc
    if not isinstance(entries, dict):
        raise BadFrame(f"frame header is a {type(entries).__name__}, expected an object")
    return entries


def _unique(pairs: list[tuple[str, object]]) -> JsonObject:
    """Return a header's object; a duplicate key is rejected, because readers may disagree about it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"duplicate key among {[key for key, _ in pairs][:10]}")
    return found


def _metadata(header: JsonObject) -> JsonObject:
    """Remove the frame's own metadata from the header, and check it."""
    try:
        meta = json.loads(header.pop("__metadata__")["fedloom"], object_pairs_hook=_unique)
        groups, keys, info = meta["groups"], meta["keys"], meta["info"]
        sound = (
            isinstance(groups, list)
            and all(isinstance(group, str) for group in groups)
            and isinstance(keys, dict)
            and isinstance(info, dict)
            and all(
                isinstance(pair, list) and len(pair) == 2 and pair[0] in groups and isinstance(pair[1], str)
                for pair in keys.values()
            )
        )
    except (KeyError, TypeError, ValueError, RecursionError) as exc:
        raise BadFrame(f"frame contains no readable fedloom metadata: {type(exc).__name__}: {exc}") from exc
    if not sound or set(keys) != set(header) or len({tuple(pair) for pair in keys.values()}) != len(keys):
        raise BadFrame("frame metadata does not describe exactly the arrays of the frame")
    return dict(meta)


def _slot(key: str, entry: Info, meta: JsonObject, data_start: int) -> Slot:
    group, name = meta["keys"][key]
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as exc:
        raise BadFrame(f"array {name!r}: unreadable description: {type(exc).__name__}: {exc}") from exc
    if not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, start, end)) or len(shape) > 32:
        raise BadFrame(f"array {name!r}: shape {shape} or offsets {start!r}, {end!r} are invalid")
    elements, extent = 1, dtype.itemsize
    for n in shape:
        elements *= n
        extent *= max(n, 1)  # NumPy checks the strides of an empty array, too
    if extent >= 2**63:
        raise BadFrame(f"array {name!r}: shape {shape} is too large")
    if elements * dtype.itemsize != end - start:
        raise BadFrame(
            f"array {name!r}: shape {shape} of {dtype.name} needs {elements * dtype.itemsize} bytes, got {end - start}"
        )
    return Slot(group, name, dtype, shape, data_start + start)
