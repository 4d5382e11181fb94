"""Records as bytes: the safetensors layout, written and read without copies.

A frame is a safetensors file: 8 bytes little-endian header length, a JSON header, the raw arrays. Checkpoints, model
files and payloads on the wire are all frames, so any safetensors reader opens them. The header is padded with spaces
until the data starts on a 64-byte boundary, and arrays are laid out by falling item size, so every array of a mapped
frame is aligned. Tensor keys are `group/name`, or just `name` if there is one group; the `__metadata__` entry
`fedloom` says which group and name each key means (keys are never split).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from fedloom.core.errors import BadFrame, LimitExceeded
from fedloom.core.layout import Layout, read_header
from fedloom.core.records import Array, Record

MAX_HEADER_BYTES = 16 << 20
"""Limit of the header, which names and shapes arrays; 16 MiB is about 100,000 of them."""


def frame_size(record: Record) -> int:
    """Return the bytes of the record's frame, without making it."""
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
    """Return the record's frame as one buffer."""
    layout = Layout.of(record)
    frame = bytearray(layout.size)
    write_into(record, memoryview(frame), layout)
    return frame


def pieces(record: Record) -> Iterator[memoryview]:
    """Yield the frame as a header and the arrays' own memory, for writing to a file without a second copy."""
    layout = Layout.of(record)
    yield memoryview(layout.header)
    for slot in layout.slots:
        array = np.ascontiguousarray(record.groups[slot.group][slot.name])
        if array.size:
            yield array.reshape(-1).view(np.uint8).data


def digest(record: Record) -> str:
    """Return the SHA-256 of the record's frame, without making it."""
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
    """Read a frame; the arrays are views of `buffer` (read-only if it is).

    Raises:
        BadFrame: truncated, overlapping, gapped, mistyped or otherwise malformed; the message says which.
        LimitExceeded: the header is longer than `max_header_bytes`.
    """
    view = memoryview(buffer).cast("B")
    header = _header(view, max_header_bytes)
    described = read_header(header)
    if described.layout.size != len(view):
        raise BadFrame(
            f"frame has {len(view)} bytes, its header describes {described.layout.size}: truncated or trailing bytes"
        )
    data = described.layout.views(view)
    groups: dict[str, dict[str, Array]] = {group: {} for group in described.groups}
    for group, name in described.order:
        groups[group][name] = data[group][name]
    return Record(groups, {key: _copied(value) for key, value in described.info.items()})


def _copied(value: object) -> object:
    """Copy a JSON value; headers are parsed once for many frames, and callers may change what they get."""
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_copied(inner) for inner in value]
    return value


def _header(view: memoryview, max_header_bytes: int) -> bytes:
    if len(view) < 8:
        raise BadFrame(f"frame has {len(view)} bytes, but the header length alone takes 8: truncated")
    length = int.from_bytes(view[:8], "little")
    if length > max_header_bytes:
        raise LimitExceeded(f"frame header of {length} bytes exceeds the limit of {max_header_bytes}")
    if 8 + length > len(view):
        raise BadFrame(f"frame has {len(view)} bytes, but its header alone needs {8 + length}: truncated")
    return bytes(view[8 : 8 + length])
