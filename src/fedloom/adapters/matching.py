"""Choosing module names by pattern: how adapters find the layers they go to."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from fedloom.core.errors import ConfigError
from fedloom.core.text import nearest

_SHOWN = 12


def match_modules(patterns: Sequence[str], names: Collection[str], setting: str) -> tuple[str, ...]:
    """Return the names that at least one pattern matches, in the order of `names`.

    A pattern (`*` and `?` are wild) means a name when it fits the whole of it or a trailing part that begins after a
    dot: `query` and `attention.self.*` both mean `body.layer.0.attention.self.query`.

    Args:
        patterns: what to look for; each has to mean something.
        names: dotted module names.
        setting: the setting of the patterns, for the error.

    Raises:
        ConfigError: a pattern means nothing; the message lists what there is.
    """
    found = {pattern: [name for name in names if _means(pattern, name)] for pattern in patterns}
    idle = [pattern for pattern, chosen in found.items() if not chosen]
    if idle or not patterns:
        raise ConfigError(f"{setting}: {_complaint(idle, names)}")
    chosen = {name for matched in found.values() for name in matched}
    return tuple(name for name in names if name in chosen)


def _means(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _complaint(idle: Sequence[str], names: Collection[str]) -> str:
    if not names:
        return "this workload's model has no layer that can carry an adapter. Does the workload freeze its body?"
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    shown = ", ".join(last[:_SHOWN]) + (" …" if len(last) > _SHOWN else "")
    first = next(iter(names))
    there = f"the model's {len(names)} layers that can carry an adapter are named: {shown} (the first is {first!r})"
    if not idle:
        return f"expected at least one pattern; {there}"
    near = nearest(idle[0], last)
    hint = f"Did you mean {near!r}? " if near is not None else ""
    return f"no layer matches {', '.join(map(repr, idle))}. {hint}{there[0].upper()}{there[1:]}"
