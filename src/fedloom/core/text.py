"""Names in messages: the nearest known one, and the dotted keys of a table."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Find the known name most like the one given.

    Args:
        name: the name given.
        known: the names there are.
        cutoff: how alike the two must be, from 0 (not at all) to 1 (equal).

    Returns:
        The known name; None if none is similar enough.
    """
    names = list(known)
    meant = [each for each in names if name in (f"num_{each}", _initials(each))]
    if len(meant) == 1:
        return meant[0]
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def _initials(name: str) -> str:
    """Return the initials of a name of several words: `lr` of `learning_rate`; empty for one word."""
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a question for the nearest known name, followed by a space; empty if no name is near."""
    near = nearest(name, known)
    return "" if near is None else f"did you mean {near!r}? "


def dotted(table: Mapping[str, V], *, keep_empty: bool = True) -> dict[str, V]:
    """Flatten nested tables to one: `{"a": {"b": 1}}` becomes `{"a.b": 1}`.

    Args:
        table: with tables as values at any depth.
        keep_empty: whether a table without keys is included, as a value.
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


def clean(text: str, limit: int | None = None) -> str:
    """Return text that can be sent and stored: invalid UTF-8 is escaped, and text beyond a limit is truncated.

    Args:
        text: any text, such as a file name with bytes that are not UTF-8.
        limit: number of characters retained; None retains all.
    """
    if limit is not None and len(text) > limit:
        text = f"{text[:limit]} … ({len(text) - limit} more characters)"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def shown(value: object, limit: int = 80) -> str:
    """Show a value and its type, for a message; never raises, however odd the value."""
    try:
        text = repr(value)
    except Exception as exc:
        text = f"a value whose repr() raises {type(exc).__name__}"
    return f"{clean(text, limit)} ({type(value).__name__})"
