"""Records for tests: some of every dtype, and comparisons bit by bit."""

from __future__ import annotations

import json
from types import MappingProxyType

import ml_dtypes
import numpy as np

from fedloom.core import frames
from fedloom.core.records import MODEL, Info, Record, arrays_sha256
from fedloom.core.seeds import generator

NOTHING: Info = MappingProxyType({})
"""An empty table that stays empty: the default for a suite's settings."""


def model_record(size: int = 3, value: float = 1.0) -> Record:
    """Make a small model: one array `w` of shape (size,), float32, every element `value`."""
    return Record({MODEL: {"w": np.full(size, value, np.float32)}})


def records_of_every_dtype(size: int) -> list[Record]:
    """Make one record for each dtype a model may have, of about `size` bytes each; the same ones every time."""
    rng = generator(1, "records of every dtype")
    records = []
    for kind in map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int64)):
        values = rng.integers(-100, 100, max(1, size // kind.itemsize)).astype(kind)
        info = {"kind": kind.name, "nested": {"list": [1, None, True]}}
        records.append(Record({MODEL: {"w": values, "s": np.ones((), kind)}}, info))
    return records


def assert_same_record(left: Record, right: Record) -> None:
    """Check that two records have equal names, dtypes, shapes, bits and info.

    Raises:
        AssertionError: they differ; the message names the array.
    """
    mine = {group: list(arrays) for group, arrays in left.groups.items()}
    theirs = {group: list(arrays) for group, arrays in right.groups.items()}
    assert mine == theirs, f"arrays {mine}, expected {theirs}"
    for (group, name, one), (_, _, other) in zip(left.items(), right.items(), strict=True):
        found, wanted = (one.dtype, one.shape), (other.dtype, other.shape)
        assert found == wanted, f"{group}/{name} is {found}, expected {wanted}"
        same = one.tobytes() == other.tobytes()  # compared outside the assertion: pytest would explain every byte
        assert same, f"{group}/{name} has other bits"
    assert left.info == right.info, f"info {left.info}, expected {right.info}"


def read_only(record: Record) -> Record:
    """Make the record's own arrays raise when they are written to; returns the record."""
    for _, _, array in record.items():
        array.setflags(write=False)
    return record


def through_frame(record: Record) -> Record:
    """Encode a record as a frame and decode it: what crosses a wire or a disk."""
    return frames.decode(bytes(frames.encode(record)))


def record_digest(record: Record) -> str:
    """Return the digest of a record's arrays and info; equal for records that are equal bit for bit."""
    arrays = {f"{group}/{name}": array for group, name, array in record.items()}
    return arrays_sha256(arrays) + json.dumps(record.info, sort_keys=True)
