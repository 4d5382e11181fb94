"""Frozen dataclass states as records and back: no pickles, so any run resumes.

A state's fields may be arrays, mappings from names to arrays, tuples of such mappings (a history), None, or JSON
values. Nothing else.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from fedloom.core.records import Array, Record

T = TypeVar("T")

_ARRAY = (np.ndarray, np.generic)
"""NumPy turns the result of arithmetic on arrays without dimensions into scalars; a state may hold those, too."""
_SINGLE = "array"
"""Name under which a field that is one array is stored in the field's group."""


def dump_state(state: Any) -> Record:
    """A dataclass instance as a record: one group per array field, the rest in `info`."""
    groups: dict[str, dict[str, Array]] = {}
    info: dict[str, Any] = {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, _ARRAY):
            groups[field.name] = {_SINGLE: np.asarray(value)}
            info[field.name] = "array"
        elif _is_arrays(value):
            groups[field.name] = {name: np.asarray(array) for name, array in value.items()}
            info[field.name] = "arrays"
        elif isinstance(value, tuple) and value and all(map(_is_arrays, value)):
            names = [f"{field.name}:{index}" for index in range(len(value))]
            groups |= {
                name: {key: np.asarray(each) for key, each in arrays.items()}
                for name, arrays in zip(names, value, strict=True)
            }
            info[field.name] = {"groups": names}
        else:
            info[field.name] = {"json": value}
    return Record(groups, info)


def load_state(kind: type[T], record: Record) -> T:
    """The inverse of `dump_state`; arrays are copied out of the record, so its buffer may go."""
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, how in record.info.items():
        if how == "array":
            values[name] = np.array(record.groups[name][_SINGLE])
        elif how == "arrays":
            values[name] = {key: np.array(array) for key, array in record.groups[name].items()}
        elif "groups" in how:
            values[name] = tuple(
                {key: np.array(array) for key, array in record.groups[group].items()} for group in how["groups"]
            )
        else:
            values[name] = _as_tuple(how["json"], hints.get(name))
    return kind(**values)


def _is_arrays(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(each, _ARRAY) for each in value.values())


def _as_tuple(value: Any, hint: Any) -> Any:
    """JSON has no tuples; give a field declared as one its type back."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    is_tuple = any(typing.get_origin(option) is tuple for option in options)
    return tuple(value) if isinstance(value, list) and is_tuple else value
