"""Records as bytes: the safetensors layout, written and read without copies.

A frame is a safetensors file: 8 bytes little-endian header length, a JSON header, the raw arrays. Checkpoints, model
files and payloads on the wire are all frames, so any safetensors reader opens them. The header is padded with spaces
until the data starts on a 64-byte boundary, and arrays are laid out by falling item size, so every array of a mapped
frame is aligned. Tensor keys are `group/name`, or just `name` where there is one group; the `__metadata__` entry
`fedloom` says which group and name each key means (keys are never split).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from fedloom.core.errors import BadFrame, LimitExceeded
from fedloom.core.records import Array, Record

MAX_HEADER_BYTES = 16 << 20
"""A header names and shapes arrays; 16 MiB is about 100,000 of them."""
ALIGNMENT = 64

_DTYPES: dict[str, np.dtype[Any]] = {
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
    """Where one array lies in a frame."""

    group: str
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int
    """Offset from the beginning of the frame; bytes."""

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The plan of a frame: its header bytes, its arrays' places, its size."""

    header: bytes
    slots: tuple[Slot, ...]
    size: int

    @classmethod
    def of(cls, record: Record, data_start: int = 0) -> Layout:
        """The layout a record is written with.

        Args:
            record: what will be written; only dtypes, shapes and `info` matter here.
            data_start: where the arrays begin at the earliest; bytes. Room for a header that is not yet final.

        Raises:
            BadFrame: an array's dtype has no code in the format.
        """
        places: dict[str, Any] = {}
        order = sorted(record.items(), key=lambda item: -item[2].dtype.itemsize)
        offset = 0
        starts: list[tuple[str, str, Array, int]] = []
        single = len(record.groups) == 1
        for group, name, array in order:
            code = _CODES.get(array.dtype)
            if code is None:
                raise BadFrame(
                    f"array {name!r} of group {group!r} has dtype {array.dtype}, which cannot be sent. "
                    f"Use one of {', '.join(sorted(dtype.name for dtype in _CODES))}"
                )
            key = name if single else f"{group}/{name}"
            if key in places or key == "__metadata__":
                raise BadFrame(f"the key {key!r} is taken; rename group {group!r} or array {name!r}")
            places[key] = {"dtype": code, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
            starts.append((group, name, array, offset))
            offset += array.nbytes
        keys = {name if single else f"{group}/{name}": [group, name] for group, name, _ in record.items()}
        meta = {"groups": list(record.groups), "keys": keys, "info": record.info}
        try:
            text = json.dumps(meta, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as exc:
            raise BadFrame(f"a record's info must be JSON values: {exc}; its keys are {list(record.info)}") from exc
        body = json.dumps({"__metadata__": {"fedloom": text}, **places}, separators=(",", ":")).encode()
        data_start = max(data_start, -(-(8 + len(body)) // ALIGNMENT) * ALIGNMENT)
        header = (data_start - 8).to_bytes(8, "little") + body.ljust(data_start - 8)
        slots = tuple(Slot(group, name, array.dtype, array.shape, data_start + at) for group, name, array, at in starts)
        return cls(header, slots, data_start + offset)

    def views(self, buffer: memoryview) -> dict[str, dict[str, Array]]:
        """The frame's arrays as views of `buffer`, grouped, in the frame's order of data."""
        groups: dict[str, dict[str, Array]] = {}
        for slot in self.slots:
            flat = np.frombuffer(buffer, slot.dtype, count=slot.num_bytes // slot.dtype.itemsize, offset=slot.start)
            groups.setdefault(slot.group, {})[slot.name] = flat.reshape(slot.shape)
        return groups


def frame_size(record: Record) -> int:
    """Bytes of the record's frame, without making it."""
    return Layout.of(record).size


def write_into(record: Record, buffer: memoryview, layout: Layout | None = None) -> int:
    """Write the record's frame at the start of a writable buffer; returns the bytes used."""
    layout = layout or Layout.of(record)
    buffer[: len(layout.header)] = layout.header
    for group, arrays in layout.views(buffer).items():
        for name, target in arrays.items():
            np.copyto(target, record.groups[group][name])
    return layout.size


def encode(record: Record) -> bytearray:
    """The record's frame as one buffer."""
    layout = Layout.of(record)
    frame = bytearray(layout.size)
    write_into(record, memoryview(frame), layout)
    return frame


def pieces(record: Record) -> Iterator[memoryview]:
    """The frame as a header and the arrays' own memory, for writing to a file without a second copy."""
    layout = Layout.of(record)
    yield memoryview(layout.header)
    for slot in layout.slots:
        array = np.ascontiguousarray(record.groups[slot.group][slot.name])
        if array.size:
            yield array.reshape(-1).view(np.uint8).data


def digest(record: Record) -> str:
    """SHA-256 of the record's frame, without making it."""
    sha256 = hashlib.sha256()
    for piece in pieces(record):
        sha256.update(piece)
    return sha256.hexdigest()


def chunked(frame: Iterable[memoryview], chunk_bytes: int, offset: int = 0) -> Iterator[bytes]:
    """Cut pieces into chunks of `chunk_bytes`, skipping the first `offset` bytes; small pieces share a chunk."""
    pending = bytearray()
    for piece in frame:
        if offset >= len(piece):
            offset -= len(piece)
            continue
        rest, offset = piece[offset:], 0
        while len(pending) + len(rest) >= chunk_bytes:
            need = chunk_bytes - len(pending)
            if pending:
                pending += rest[:need]
                yield bytes(pending)
                pending.clear()
            else:
                yield bytes(rest[:need])
            rest = rest[need:]
        pending += rest
    if pending:
        yield bytes(pending)


def decode(buffer: bytes | bytearray | memoryview, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Record:
    """Read a frame; the arrays are views of `buffer` (read-only where it is).

    Raises:
        BadFrame: truncated, overlapping, gapped, mistyped or otherwise malformed; the message says which.
        LimitExceeded: the header is longer than `max_header_bytes`.
    """
    view = memoryview(buffer).cast("B")
    header, data_start = _header(view, max_header_bytes)
    meta = _metadata(header)
    slots = sorted((_slot(key, entry, meta, data_start) for key, entry in header.items()), key=lambda s: s.start)
    expected = data_start
    for slot in slots:
        if slot.start != expected:
            raise BadFrame(f"array {slot.name!r} starts at byte {slot.start}, expected {expected}: gap or overlap")
        expected += slot.num_bytes
    if expected != len(view):
        raise BadFrame(f"frame has {len(view)} bytes, its header describes {expected}: truncated or trailing bytes")
    data = Layout(b"", tuple(slots), expected).views(view)
    groups: dict[str, dict[str, Array]] = {group: {} for group in meta["groups"]}
    for _, (group, name) in meta["keys"].items():
        groups[group][name] = data[group][name]
    return Record(groups, meta["info"])


def _header(view: memoryview, max_header_bytes: int) -> tuple[dict[str, Any], int]:
    if len(view) < 8:
        raise BadFrame(f"frame has {len(view)} bytes, a header length alone takes 8: truncated")
    length = int.from_bytes(view[:8], "little")
    if length > max_header_bytes:
        raise LimitExceeded(f"frame header of {length} bytes exceeds the limit of {max_header_bytes}")
    if 8 + length > len(view):
        raise BadFrame(f"frame has {len(view)} bytes, its header alone needs {8 + length}: truncated")
    try:
        header = json.loads(bytes(view[8 : 8 + length]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise BadFrame(f"frame header is not JSON: {exc}") from exc
    if not isinstance(header, dict):
        raise BadFrame(f"frame header is a {type(header).__name__}, expected an object")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the header; two readers may disagree about a key that comes twice, so there is none."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a key comes twice among {[key for key, _ in pairs][:10]}")
    return found


def _metadata(header: dict[str, Any]) -> dict[str, Any]:
    """Take the frame's own metadata out of the header, checked."""
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
        raise BadFrame(f"frame carries no readable fedloom metadata: {type(exc).__name__}: {exc}") from exc
    if not sound or set(keys) != set(header) or len({tuple(pair) for pair in keys.values()}) != len(keys):
        raise BadFrame("frame metadata does not describe exactly the arrays of the frame")
    return dict(meta)


def _slot(key: str, entry: Any, meta: dict[str, Any], data_start: int) -> Slot:
    group, name = meta["keys"][key]
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(entry["shape"])
        start, end = entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as exc:
        raise BadFrame(f"array {name!r}: unreadable description: {type(exc).__name__}: {exc}") from exc
    if not all(type(n) is int and 0 <= n < 2**48 for n in (*shape, start, end)) or len(shape) > 32:
        raise BadFrame(f"array {name!r}: shape {shape} or offsets {start!r}, {end!r} are not sound")
    elements, extent = 1, dtype.itemsize
    for n in shape:
        elements *= n
        extent *= max(n, 1)  # NumPy wants the strides of an empty array to fit, too
    if extent >= 2**63:
        raise BadFrame(f"array {name!r}: shape {shape} is too large")
    if elements * dtype.itemsize != end - start:
        raise BadFrame(
            f"array {name!r}: shape {shape} of {dtype.name} needs {elements * dtype.itemsize} bytes, got {end - start}"
        )
    return Slot(group, name, dtype, shape, data_start + start)
