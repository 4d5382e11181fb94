"""Converts frozen dataclass states to records and back: no pickles, so any run resumes.

A state's fields may be arrays, mappings from names to arrays, pinned records or tuples of them, None, or JSON values.
No other types. A pinned record is dumped as its digest alone; it has to be stored together with the dump.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import TypeVar

import numpy as np

from fedloom.core.pinned import Pinned
from fedloom.core.records import Array, JsonObject, Record

T = TypeVar("T")

_ARRAY = (np.ndarray, np.generic)
"""Python numbers and NumPy scalars: arithmetic on arrays without dimensions gives the latter."""
_SINGLE = "array"
"""Name of the array of a field that is one array, in the field's group."""


def dump_state(state: object) -> Record:
    """Return a dataclass instance as a record: one group per array field, the rest in `info`."""
    groups: dict[str, dict[str, Array]] = {}
    info: JsonObject = {}
    for field in _fields(state):
        value = getattr(state, field.name)
        if isinstance(value, _ARRAY):
            groups[field.name] = {_SINGLE: np.asarray(value)}
            info[field.name] = "array"
        elif isinstance(value, Mapping) and value and all(isinstance(v, _ARRAY) for v in value.values()):
            groups[field.name] = {name: np.asarray(array) for name, array in value.items()}
            info[field.name] = "arrays"
        elif isinstance(value, Pinned):
            info[field.name] = {"pinned": value.sha256}
        elif isinstance(value, tuple) and value and all(isinstance(item, Pinned) for item in value):
            info[field.name] = {"pinned": [item.sha256 for item in value]}
        else:
            info[field.name] = {"json": value}
    return Record(groups, info)


def arrays_in(state: object) -> Iterator[tuple[str, str, Array]]:
    """Yield the arrays of a state as (field, name, array); none of its pinned records."""
    for field in _fields(state):
        value = getattr(state, field.name)
        if isinstance(value, _ARRAY):
            yield field.name, _SINGLE, np.asarray(value)
        elif isinstance(value, Mapping):
            yield from ((field.name, str(name), np.asarray(v)) for name, v in value.items() if isinstance(v, _ARRAY))


def pinned_in(state: object) -> dict[str, Pinned]:
    """Return the pinned records a state refers to, by digest."""
    return {record.sha256: record for record in _pinned(state)}


def _pinned(state: object) -> Iterator[Pinned]:
    for field in _fields(state):
        value = getattr(state, field.name)
        yield from (item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, Pinned))


def load_state(kind: type[T], record: Record, pinned: Mapping[str, Pinned] | None = None) -> T:
    """Return the state of a record (inverse of `dump_state`); arrays are copied, so its buffer may be freed.

    Args:
        kind: the state's class.
        record: the result of `dump_state`.
        pinned: the records `pinned_in` found in the state.
    """
    hints = typing.get_type_hints(kind)
    values: JsonObject = {}
    for name, how in record.info.items():
        if how == "array":
            values[name] = np.array(record.groups[name][_SINGLE])
        elif how == "arrays":
            values[name] = {key: np.array(array) for key, array in record.groups[name].items()}
        elif "pinned" in how:
            named, known = how["pinned"], pinned or {}
            values[name] = known[named] if isinstance(named, str) else tuple(known[sha256] for sha256 in named)
        else:
            values[name] = _as_tuple(how["json"], hints.get(name))
    return kind(**values)


def _fields(state: object) -> tuple[dataclasses.Field[object], ...]:
    if isinstance(state, type) or not dataclasses.is_dataclass(state):
        raise TypeError(f"expected an instance of a strategy's or selection's State, a dataclass, got {state!r}")
    return dataclasses.fields(state)


def _as_tuple(value: object, hint: object) -> object:
    """Convert a JSON list to a tuple, if the field is declared as one."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    is_tuple = any(typing.get_origin(option) is tuple for option in options)
    return tuple(value) if isinstance(value, list) and is_tuple else value
