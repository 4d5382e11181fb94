"""Checks that users' strategies, selections and monitors have in common: states, reports, records, arrays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping

import numpy as np

from fedloom.core.blame import Blame, kind_of
from fedloom.core.pinned import Pinned
from fedloom.core.records import Record
from fedloom.core.state import arrays_in

SHOWN = 4
"""Clients that an error names."""


class States:
    """Checks the states of one part: their class, what they hold, that nobody changes them in place."""

    def __init__(self, blame: Blame, kind: type) -> None:
        self._blame, self._kind = blame, kind
        self._seen: tuple[object, object] | None = None

    def made(self, method: str, state: object) -> None:
        """Refuse a state of another class, or one that cannot be saved; its arrays become read-only."""
        if not isinstance(state, self._kind):
            raise self._blame.wrong(method, f"found {kind_of(state)}, expected a {self._kind.__name__} (State)")
        for field in dataclasses.fields(self._kind):
            self._check_field(method, field.name, getattr(state, field.name))
        for _, _, array in arrays_in(state):
            array.flags.writeable = False
        self._seen = state, _snapshot(state)

    def unchanged(self, method: str, state: object) -> None:
        """Refuse a method that has changed the state it was given."""
        if self._seen is not None and self._seen[0] is state and _snapshot(state) != self._seen[1]:
            raise self._blame.wrong(
                method, "found the state changed in place, expected a new one: dataclasses.replace(state, …)"
            )

    def _check_field(self, method: str, name: str, value: object) -> None:
        values = list(value.values()) if isinstance(value, Mapping) else [value]
        odd = next((each for each in values if type(each).__module__.partition(".")[0] == "torch"), None)
        if odd is not None:
            raise self._blame.wrong(method, f"field {name!r} of the state holds {kind_of(odd)}, expected NumPy arrays")
        if any(isinstance(each, np.ndarray | np.generic | Pinned) for each in values) or isinstance(value, tuple):
            return
        try:
            json.dumps(value)
        except (TypeError, ValueError) as exc:
            raise self._blame.wrong(
                method, f"field {name!r} of the state is {kind_of(value)}, expected arrays or JSON values ({exc})"
            ) from exc


def _snapshot(state: object) -> object:
    """Return what tells that a state was changed in place: the identities of its arrays, and its other values."""
    found = list[object]()
    for field in dataclasses.fields(state):  # type: ignore[arg-type]  # checked to be a dataclass
        value = getattr(state, field.name)
        if isinstance(value, Mapping):
            found.append({key: id(each) if isinstance(each, np.ndarray) else repr(each) for key, each in value.items()})
        else:
            found.append(id(value) if isinstance(value, np.ndarray) else repr(value))
    return found


def check_json(blame: Blame, method: str, value: object) -> None:
    """Refuse a report that is no JSON object."""
    if not isinstance(value, Mapping):
        raise blame.wrong(method, f"found {kind_of(value)}, expected a dict of JSON values")
    try:
        json.dumps(dict(value))
    except (TypeError, ValueError) as exc:
        raise blame.wrong(method, f"expected a dict of JSON values: {exc}; write float(…) or .tolist()") from exc


def check_record(blame: Blame, method: str, record: object, what: str) -> None:
    """Refuse what is no record of NumPy arrays."""
    if not isinstance(record, Record):
        raise blame.wrong(method, f"{what} is {kind_of(record)}, expected a Record")
    for group, arrays in record.groups.items():
        check_arrays(blame, method, arrays, f"group {group!r} of {what}")


def check_arrays(blame: Blame, method: str, arrays: object, what: str) -> None:
    """Refuse what is no mapping of names to NumPy arrays."""
    if not isinstance(arrays, Mapping):
        raise blame.wrong(method, f"{what}: found {kind_of(arrays)}, expected a dict of NumPy arrays by name")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray | np.generic):
            raise blame.wrong(method, f"{what}: array {name!r} is {kind_of(array)}, expected a NumPy array")


def check_choice(blame: Blame, method: str, clients: object, population: int) -> tuple[int, ...]:
    """Return the clients that a method chose.

    Raises:
        PluginInvalid: they are no distinct numbers of the roster.
    """
    expected = f"expected a tuple of distinct clients (int) from 0 to {population - 1}"
    if isinstance(clients, str | bytes) or not isinstance(clients, Iterable):
        raise blame.wrong(method, f"found {kind_of(clients)}, {expected}")
    given = tuple(clients)
    odd = [client for client in given if type(client) is not int]
    if odd:
        hint = "; write int(client) or .tolist()" if isinstance(odd[0], np.generic) else ""
        raise blame.wrong(method, f"found {odd[0]!r}, {kind_of(odd[0])}, {expected}{hint}")
    outside = [client for client in given if not 0 <= client < population]
    if outside:
        raise blame.wrong(method, f"found {outside[0]}, {expected}")
    if len(set(given)) < len(given):
        twice = next(client for client in given if given.count(client) > 1)
        raise blame.wrong(method, f"found {twice} more than once in {given[:SHOWN]}…, {expected}")
    return given
