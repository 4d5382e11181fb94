"""State of a Flower object between rounds, as arrays and JSON: captured from its attributes and restored.

The objects are stateful (FedAdam has moments, adaptive clipping a norm, a user's class anything), fedloom's
strategies are values. A memory is the value of an object's attributes at one moment.
"""

from __future__ import annotations

import random
import types
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from fedloom.core.errors import UnsupportedFeature
from fedloom.core.records import Array
from fedloom.strategies.flower import flwr_api as flwr
from fedloom.strategies.flower import records

Value: TypeAlias = Any
"""Any attribute of a foreign object."""
Encoded: TypeAlias = list[Any]
"""A value as JSON: its kind and content."""
_CODE = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, type)
"""Attributes of these kinds are the program, not its memory."""


@dataclass
class Memory:
    """A tree of JSON whose leaves may point into `arrays`."""

    arrays: dict[str, Array] = field(default_factory=dict)
    tree: dict[str, Encoded] = field(default_factory=dict)


def capture(thing: object, owner: str, constant: Mapping[str, object] | None = None) -> Memory:
    """Return the attributes of an object, including those of Flower strategies inside it.

    Args:
        thing: the object.
        owner: its name in error messages.
        constant: attributes as the constructor left them, by path. One that cannot be saved is omitted as long as it
            is the very object the constructor made; without this mapping it is always an error.

    Raises:
        UnsupportedFeature: an attribute cannot be saved; the message names it.
    """
    memory = Memory()
    memory.tree = _Writer(memory.arrays, owner, constant).attributes(thing, "")
    return memory


def constants(thing: object, path: str = "") -> dict[str, object]:
    """Return the attributes of an object (and of strategies inside it) by path, for `capture`."""
    found: dict[str, object] = {}
    for name, value in vars(thing).items():
        if isinstance(value, flwr.Strategy):
            found |= constants(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found


def restore(thing: object, memory: Memory) -> None:
    """Set the object's attributes to the captured ones; those added since are removed."""
    _restore_attributes(thing, memory.tree, memory.arrays)


@dataclass
class _Writer:
    arrays: dict[str, Array]
    owner: str
    constant: Mapping[str, object] | None

    def attributes(self, thing: object, path: str) -> dict[str, Encoded]:
        """Return one entry per attribute of the memory."""
        tree = {}
        for name, value in vars(thing).items():
            if isinstance(value, _CODE):
                continue
            writer = _Writer({}, self.owner, self.constant)
            try:
                tree[name] = writer.value(value, f"{path}{name}")
            except UnsupportedFeature:
                if self.constant is None or self.constant.get(f"{path}{name}") is not value:
                    raise
                continue
            self.arrays |= writer.arrays
        return tree

    def value(self, value: Value, path: str) -> Encoded:
        """Return a value as `[kind, …]`."""
        if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, np.generic)):
            return ["json", value]
        for kinds, encode in self._encoders():
            if isinstance(value, kinds):
                return encode(value, path)
        if type(value) in (list, tuple, set, frozenset):
            return self._sequence(value, path)
        if type(value) in (dict, OrderedDict):
            return self._mapping(value, path)
        raise UnsupportedFeature(
            f"{self.owner} has attribute {path!r} of type {type(value).__module__}.{type(value).__qualname__} "
            "between rounds, which cannot be saved. Use arrays, numbers, strings, lists, dictionaries or Flower "
            "records instead"
        )

    def _encoders(self) -> list[tuple[type | tuple[type, ...], Callable[[Value, str], Encoded]]]:
        return [
            ((np.ndarray, np.generic), self._array),
            (bytes, lambda value, path: ["bytes", records.to_json(value)]),
            (flwr.Strategy, lambda value, path: ["inside", self.attributes(value, f"{path}.")]),
            (flwr.RecordDict, self._record_dict),
            ((flwr.ArrayRecord, flwr.MetricRecord, flwr.ConfigRecord), self._record),
            (np.random.Generator, self._generator),
            (np.random.RandomState, self._random_state),
            (random.Random, lambda value, path: ["random", self.value(value.getstate(), path)]),
        ]

    def _array(self, value: Array, path: str) -> Encoded:
        if value.dtype.hasobject:
            raise UnsupportedFeature(
                f"{self.owner}: attribute {path!r} is an array of Python objects; it cannot be saved"
            )
        self.arrays[path] = np.array(value)
        return ["array" if isinstance(value, np.ndarray) else "scalar", path]

    def _record(self, value: Value, path: str) -> Encoded:
        return ["record", *self._record_dict(flwr.RecordDict({"only": value}), path)[1:]]

    def _record_dict(self, value: flwr.RecordDict, path: str) -> Encoded:
        groups, described = records.split(value)
        for group, arrays in groups.items():
            self.arrays |= {f"{path}/{group}/{name}": array for name, array in arrays.items()}
        return ["records", path, described]

    def _sequence(self, value: Collection[Value], path: str) -> Encoded:
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return ["sequence", type(value).__name__, [self.value(item, f"{path}[{i}]") for i, item in enumerate(items)]]

    def _mapping(self, value: Mapping[Value, Value], path: str) -> Encoded:
        pairs = [[self.value(key, f"{path} keys"), self.value(item, f"{path}[{key!r}]")] for key, item in value.items()]
        return ["mapping", pairs]

    def _generator(self, value: np.random.Generator, path: str) -> Encoded:
        return ["generator", self.value(value.bit_generator.state, path)]

    def _random_state(self, value: np.random.RandomState, path: str) -> Encoded:
        return ["random_state", self.value(value.get_state(legacy=False), path)]


def _restore_attributes(thing: object, tree: Mapping[str, Encoded], arrays: Mapping[str, Array]) -> None:
    for name in [name for name, value in vars(thing).items() if name not in tree and _is_plain(value)]:
        delattr(thing, name)
    for name, encoded in tree.items():
        current = getattr(thing, name, None)
        if encoded[0] == "inside":
            _restore_attributes(current, encoded[1], arrays)
        elif encoded[0] == "generator":
            current.bit_generator.state = decode(encoded[1], arrays)  # type: ignore[union-attr]  # as captured
        elif encoded[0] in ("random", "random_state"):
            setter = "setstate" if encoded[0] == "random" else "set_state"
            getattr(current, setter)(decode(encoded[1], arrays))
        else:
            setattr(thing, name, decode(encoded, arrays))


def _is_plain(value: object) -> bool:
    """Return whether an attribute missing from a memory was set after it was captured."""
    return value is None or isinstance(value, bool | int | float | str | bytes | np.ndarray | list | tuple | Mapping)


def encode(value: Value, arrays: dict[str, Array], path: str, owner: str) -> Encoded:
    """Return one value as a tree; its arrays are added to `arrays` under names that begin with `path`."""
    return _Writer(arrays, owner, None).value(value, path)


def decode(encoded: Encoded, arrays: Mapping[str, Array]) -> Value:
    """Return a fresh value from a tree and its arrays."""
    kind, *rest = encoded
    if kind == "json":
        return rest[0]
    if kind in ("array", "scalar"):
        array = np.array(arrays[rest[0]])
        return array if kind == "array" else array[()]
    if kind == "bytes":
        return records.from_json(rest[0])
    if kind in ("record", "records"):
        path, described = rest
        groups = {
            entry["group"]: _under(arrays, f"{path}/{entry['group']}/") for entry in described if "group" in entry
        }
        content = records.join(groups, described)
        return content["only"] if kind == "record" else content
    if kind == "sequence":
        make = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[rest[0]]
        return make(decode(item, arrays) for item in rest[1])
    if kind == "mapping":
        return {decode(key, arrays): decode(item, arrays) for key, item in rest[0]}
    raise UnsupportedFeature(
        f"a memory contains {kind!r}, which this version does not support; was it written by a newer one?"
    )


def _under(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
