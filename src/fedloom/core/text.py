"""Names in messages: the nearest known one, and the dotted keys of a table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Find the known name most like the one given.

    Args:
        name: what was given.
        known: the names there are.
        cutoff: how alike the two must be, from 0 (not at all) to 1 (equal).

    Returns:
        The known name; None where none is that much alike.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Ask for the nearest known name, with a space behind the question; empty where no name is near."""
    near = nearest(name, known)
    return "" if near is None else f"did you mean {near!r}? "


def dotted(table: Mapping[str, V], *, keep_empty: bool = True) -> dict[str, V]:
    """Flatten nested tables to one: `{"a": {"b": 1}}` becomes `{"a.b": 1}`.

    Args:
        table: with tables as values at any depth.
        keep_empty: whether a table without any key stays, as a value.
    """
    flat: dict[str, V] = {}
    for key, value in table.items():
        if not isinstance(value, Mapping):
            flat[key] = value
        elif value:
            flat |= {f"{key}.{inner}": each for inner, each in dotted(value, keep_empty=keep_empty).items()}
        elif keep_empty:
            flat[key] = value
    return flat
