"""Applies `key=value` settings of the command line to a table of settings."""

from __future__ import annotations

import copy
import itertools
import json
import tomllib
from collections.abc import Iterator, Sequence

from fedloom.core.errors import ConfigError
from fedloom.core.kinds import SECTIONS
from fedloom.core.records import Info, JsonObject

_KINDS = ("name", "scheme", "source")
"""Keys that say which kind a table is."""


def with_overrides(values: Info, overrides: Sequence[str]) -> JsonObject:
    """Apply `a.b=c` settings to a dictionary; the right side is TOML if it parses, otherwise a string.

    A changed kind (`name`, `scheme` or `source` of a table in a plug-in's section) drops the other settings of that
    table, which are the old kind's; settings of the new one may be given in any order.
    """
    result: JsonObject = copy.deepcopy(dict(values))
    for override in sorted(overrides, key=lambda each: not _chooses_kind(each)):
        key, equals, text = override.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps):
            raise ConfigError(f"--set {override!r}: expected KEY=VALUE, such as --set strategy.mu=0.1")
        table = result
        for step in steps[:-1]:
            inner = table.setdefault(step, {})
            if isinstance(inner, str) and step in SECTIONS:
                inner = table[step] = {"name": inner}
            if not isinstance(inner, dict):
                raise ConfigError(f"--set {key}: {step!r} is a value ({inner!r}), not a table with keys")
            table = inner
        value = _toml_value(text.strip())
        if _chooses_kind(override) and table.get(steps[-1], value) != value:
            table.clear()
        table[steps[-1]] = value
    return result


def _chooses_kind(override: str) -> bool:
    """Return whether an override says which kind a plug-in, or a table of its settings, is."""
    section, *inner = override.partition("=")[0].strip().split(".")
    return section in SECTIONS and bool(inner) and inner[-1] in _KINDS


_MOST_VARIANTS = 4
"""Overrides that are tried as text, together, at most."""


def text_variants(overrides: Sequence[str]) -> Iterator[list[str]]:
    """Yield the overrides with those that TOML reads as anything but text quoted: first one of them, then more."""
    other = []
    for index, override in enumerate(overrides):
        _, equals, text = override.partition("=")
        if equals and not isinstance(_toml_value(text.strip()), str):
            other.append(index)
    for count in range(1, min(len(other), _MOST_VARIANTS) + 1):
        for chosen in itertools.combinations(other, count):
            yield [_as_text(each) if index in chosen else each for index, each in enumerate(overrides)]


def _as_text(override: str) -> str:
    key, _, text = override.partition("=")
    return f"{key}={json.dumps(text.strip())}"


def _toml_value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
