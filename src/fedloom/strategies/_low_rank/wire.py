"""Groups of arrays in fewer bits: what crosses between server and clients, both ways.

`fp16` sends half-precision floats (clipped to their largest value), `int8` whole numbers from -127 to 127 with one
float32 scale for each block of 64 consecutive elements, q = round(x / scale), scale = max|x| / 127. Arrays that are no
floats go as they are. Scales are elements that travel, so they are counted like all others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from fedloom.core.records import Array, Arrays, Groups, Info, Record

Wire = Literal["fp32", "fp16", "int8"]
BLOCK = 64
"""Consecutive elements that share a scale."""
WIRE = "wire"
"""Key of a record's info for its packing."""


def pack(groups: Groups, wire: Wire) -> tuple[Groups, Info]:
    """Return the groups as sent, and the information for `unpack` (empty for `fp32`)."""
    if wire == "fp32":
        return groups, {}
    packed: dict[str, dict[str, Array]] = {group: dict(arrays) for group, arrays in groups.items()}
    scales_of = {group: _scales_of(group) for group in groups} if wire == "int8" else {}
    dtypes: dict[str, dict[str, str]] = {}
    for group, name, array in Record(groups).items():
        if array.dtype.kind != "f":
            continue
        if array.dtype != np.float32:
            dtypes.setdefault(group, {})[name] = array.dtype.name
        if wire == "fp16":
            packed[group][name] = _half(array)
        else:
            packed[group][name], scales = quantized(array)
            packed.setdefault(scales_of[group], {})[name] = scales
    return packed, {WIRE: {"scales": scales_of, "dtypes": dtypes}}


def packed_names(groups: Groups, wire: Wire) -> dict[str, frozenset[str]]:
    """Return the names of the arrays in each group that `pack` makes; packs nothing."""
    names = {group: frozenset(arrays) for group, arrays in groups.items()}
    if wire == "int8":
        scaled = {
            group: frozenset(name for name, array in arrays.items() if array.dtype.kind == "f")
            for group, arrays in groups.items()
        }
        names |= {_scales_of(group): of_group for group, of_group in scaled.items() if of_group}
    return names


def unpack(groups: Groups, info: Info) -> Groups:
    """Return the groups restored, except for the packing's rounding."""
    if WIRE not in info:
        return groups
    scales_of: Mapping[str, str] = info[WIRE]["scales"]
    plain: dict[str, Arrays] = {}
    for group, arrays in groups.items():
        if group in scales_of.values():
            continue
        scales = groups.get(scales_of.get(group, ""), {})
        dtypes: Mapping[str, str] = info[WIRE]["dtypes"].get(group, {})
        plain[group] = {name: _plain(array, scales.get(name), dtypes.get(name)) for name, array in arrays.items()}
    return plain


def unpacked(record: Record) -> Record:
    """Return a record, unpacked if its groups are packed."""
    if WIRE not in record.info:
        return record
    info = {key: value for key, value in record.info.items() if key != WIRE}
    return Record(unpack(record.groups, record.info), info)


def quantized(array: Array) -> tuple[Array, Array]:
    """Quantize an array to 8 bits.

    Returns:
        Whole numbers of the array's shape, int8, and the scale of each block of its elements in C order, float32.
    """
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    padded = np.zeros(-(-flat.size // BLOCK) * BLOCK, np.float32)
    padded[: flat.size] = flat
    blocks = padded.reshape(-1, BLOCK)
    scales = np.abs(blocks).max(axis=1) / np.float32(127)
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = np.where(scales[:, None] > 0, np.rint(blocks / scales[:, None]), 0).astype(np.int8)
    return whole.reshape(-1)[: flat.size].reshape(array.shape), scales


def dequantized(whole: Array, scales: Array) -> Array:
    """Return the array of quantized values, float32: off by at most half a scale per element."""
    flat = whole.reshape(-1).astype(np.float32)
    flat *= np.repeat(scales, BLOCK)[: flat.size]
    return flat.reshape(whole.shape)


def _scales_of(group: str) -> str:
    return f"scales of {group}"


def _plain(array: Array, scales: Array | None, dtype: str | None) -> Array:
    """Return a packed array in its own dtype: the one named, otherwise float32."""
    if scales is not None:
        array = dequantized(array, scales)
    if array.dtype.kind != "f":
        return array
    return array.astype(dtype or np.float32, copy=False)


def _half(array: Array) -> Array:
    limit = np.finfo(np.float16).max
    return np.clip(array, -limit, limit).astype(np.float16)
