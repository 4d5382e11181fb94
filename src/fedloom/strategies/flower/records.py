"""Converts Flower's records to fedloom's and back: arrays in groups, the rest as JSON, without loss.

A `RecordDict` becomes one group of arrays for each of its ArrayRecords and a description, a JSON list with one entry
per record in order: `{"name", "kind", …}` with `kind` one of `arrays`, `metrics`, `config`. Bytes in ConfigRecords are
arrays, too: a group of their own holds them as uint8, and the description names their places.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import TypeAlias

import ml_dtypes
import numpy as np

from fedloom.core import records
from fedloom.core.records import Arrays, Groups, Info, Json
from fedloom.strategies.flower import flwr_api as flwr

ARRAYS = "arrays"
CONFIG = "config"
"""Flower's own default names of the records in a message."""
WEIGHTS = ("num-examples", "num_examples")
"""Names of the metric by which replies are weighted: Flower's default, and that of the API before messages."""
Value: TypeAlias = "bool | int | float | str | bytes | list[Value]"
"""Value of a ConfigRecord or a MetricRecord."""
_NATIVE = frozenset("?bhilqBHILQefd")
"""Type codes that both sides support unchanged."""
_EXTENSIONS = (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)
_BLOBS = "/bytes"
"""What the name of a group of a ConfigRecord's bytes ends with; no group of arrays has such a name."""
_MAX_LISTED = 256
"""Numbers of a list metric that are shown, at most."""


def to_array_record(arrays: Arrays) -> flwr.ArrayRecord:
    """Arrays as Flower's record. bfloat16 and float8, which Flower cannot read back, go as float32."""
    return flwr.ArrayRecord({name: flwr.Array(_readable(array)) for name, array in arrays.items()})


def from_array_record(record: flwr.ArrayRecord) -> dict[str, records.Array]:
    """Return the arrays of a record, decoded from NumPy's file format; those in another encoding are omitted."""
    return {name: decoded for name, array in record.items() if (decoded := _decoded(array)) is not None}


def split(content: flwr.RecordDict, prefix: str = "") -> tuple[Groups, list[Info]]:
    """Split a RecordDict into groups of arrays and a description; `join` reads them back.

    Args:
        content: the RecordDict.
        prefix: prefix of each group's name.
    """
    groups: dict[str, Arrays] = {}
    described: list[Info] = []
    for name, record in content.items():
        if isinstance(record, flwr.ArrayRecord):
            group = prefix + name
            groups[group], foreign = _split_arrays(record)
            described.append(
                {"name": name, "kind": "arrays", "group": group, "order": list(record)}
                | ({"foreign": foreign} if foreign else {})
            )
        else:
            entry, blobs = _split_values(name, record)
            if blobs:
                groups[prefix + name + _BLOBS] = blobs
                entry["group"] = prefix + name + _BLOBS
            described.append(entry)
    return groups, described


def _split_values(name: str, record: flwr.MetricRecord | flwr.ConfigRecord) -> tuple[dict[str, object], Arrays]:
    """Return the description of a MetricRecord or ConfigRecord, and its bytes as arrays."""
    blobs: dict[str, records.Array] = {}

    def described(value: Value) -> Json:
        if isinstance(value, bytes):
            blobs[str(len(blobs))] = np.frombuffer(value, np.uint8) if value else np.zeros(0, np.uint8)
            return {"blob": len(blobs) - 1}
        return [described(item) for item in value] if isinstance(value, list) else to_json(value)

    kind = "metrics" if isinstance(record, flwr.MetricRecord) else "config"
    return {"name": name, "kind": kind, "values": {key: described(record[key]) for key in record}}, blobs


def join(groups: Groups, described: Sequence[Info]) -> flwr.RecordDict:
    """Return the RecordDict that `split` was given."""
    content = flwr.RecordDict()
    for entry in described:
        if entry["kind"] == "arrays":
            content[entry["name"]] = join_arrays(groups.get(entry["group"], {}), entry)
        else:
            kind = flwr.MetricRecord if entry["kind"] == "metrics" else flwr.ConfigRecord
            blobs = groups.get(entry.get("group", ""), {})
            content[entry["name"]] = kind({key: from_json(value, blobs) for key, value in entry["values"].items()})
    return content


def join_arrays(arrays: Arrays, entry: Info) -> flwr.ArrayRecord:
    """Return one ArrayRecord from its arrays and its entry of a description."""
    foreign = entry.get("foreign", {})
    return flwr.ArrayRecord(
        {
            name: _foreign_array(arrays[name], foreign[name]) if name in foreign else flwr.Array(arrays[name])
            for name in entry["order"]
        }
    )


def _split_arrays(record: flwr.ArrayRecord) -> tuple[Arrays, dict[str, Info]]:
    """Return the arrays of one record; those with a special encoding or dtype as bytes, with its description."""
    arrays: dict[str, records.Array] = {}
    foreign: dict[str, Info] = {}
    for name, array in record.items():
        decoded = _decoded(array)
        if decoded is not None:
            arrays[name] = decoded
        else:
            arrays[name] = np.frombuffer(array.data, np.uint8) if array.data else np.zeros(0, np.uint8)
            foreign[name] = {"dtype": array.dtype, "shape": list(array.shape), "stype": array.stype}
    return arrays, foreign


def _decoded(array: flwr.Array) -> records.Array | None:
    """Return an array that NumPy's file format and fedloom's wire both hold; None for any other bytes."""
    if array.stype != flwr.NUMPY_STYPE:
        return None
    try:
        decoded: records.Array = np.load(BytesIO(array.data), allow_pickle=False)
    except (ValueError, EOFError, OSError):  # an encoding of the app's own under the usual name
        return None
    return decoded if decoded.dtype.char in _NATIVE and decoded.dtype.isnative else None


def _foreign_array(data: records.Array, head: Info) -> flwr.Array:
    return flwr.Array(head["dtype"], tuple(head["shape"]), head["stype"], data.tobytes())


def _readable(array: records.Array) -> records.Array:
    return array.astype(np.float32) if array.dtype in _EXTENSIONS else np.asarray(array)


def to_json(value: Value) -> Json:
    """Return a value of a ConfigRecord or MetricRecord as JSON; bytes in base64."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, list):
        return [to_json(item) for item in value]
    if isinstance(value, bool | str):
        return value
    return int(value) if isinstance(value, int) else float(value)


def from_json(value: Json, blobs: Arrays | None = None) -> object:
    """Return the value of JSON (inverse of `to_json`); `blobs` holds the bytes that `split` made arrays of."""
    if isinstance(value, Mapping):
        if "blob" in value:
            return (blobs or {})[str(value["blob"])].tobytes()
        return base64.b64decode(str(value["base64"]))
    return [from_json(item, blobs) for item in value] if isinstance(value, list | tuple) else value


def numbers(described: Iterable[Info]) -> dict[str, float]:
    """Return the numbers of a description's MetricRecords, and those of a reply of the API before messages."""
    found: dict[str, float] = {}
    for entry in described:
        if entry["kind"] == "metrics" or str(entry["name"]).endswith(flwr.LEGACY_METRICS):
            found |= scalars(entry["values"])
    return found


def scalars(record: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers of a MetricRecord, or of any mapping; `per_class[0]` is the first of a list `per_class`."""
    found: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, list | tuple):
            found |= {f"{key}[{place}]": float(item) for place, item in enumerate(value[:_MAX_LISTED])}
        elif isinstance(value, int | float):
            found[key] = float(value)
    return found
