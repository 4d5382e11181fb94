"""Turns the errors of a settings model into the user's terms."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import BaseModel
from pydantic_core import ErrorDetails

from fedloom.core.config.settings import SWITCH
from fedloom.core.errors import ConfigError
from fedloom.core.text import nearest


def config_error(exc: pydantic.ValidationError, model: type[BaseModel], prefix: tuple[str, ...] = ()) -> ConfigError:
    """Turn a validation error into the user's terms: key, value, what was expected, the nearest valid key."""
    lines, reported = [], set[str]()
    for error in exc.errors():
        cause = error.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):
            return cause
        location, known = _follow(model, error["loc"])
        key = ".".join((*prefix, *location)) or "experiment"
        if key in reported:
            continue  # another member of a union, which the value fits no better
        reported.add(key)
        if error["type"] == "extra_forbidden":
            near = nearest(location[-1], known, cutoff=0.5)
            hint = f"did you mean {'.'.join((*prefix, *location[:-1], near))!r}?" if near else "remove it;"
            lines.append(f"{key}: unknown setting (value {error['input']!r}); {hint} known here: {', '.join(known)}")
        elif error["type"] == SWITCH:
            lines.append(f"{'.'.join((*prefix, *location, error['ctx']['key']))}: {error['msg']}")
        elif error["type"] == "union_tag_not_found":
            lines.append(f"{key}.{_unquoted(error, 'discriminator')}: required, but missing; it selects the kind")
        elif error["type"] == "union_tag_invalid":
            tag = f"{key}.{_unquoted(error, 'discriminator')}"
            lines.append(f"{tag}: expected one of {error['ctx']['expected_tags']}, got {error['ctx']['tag']!r}")
        elif error["type"] == "missing":
            lines.append(f"{key}: required, but missing")
        else:
            lines.append(f"{key}: {error['msg']}, got {error['input']!r}")
    return ConfigError("\n".join(lines))


def _follow(model: type[BaseModel], location: Sequence[str | int]) -> tuple[tuple[str, ...], list[str]]:
    """Return an error's location as the user wrote it, and the settings valid at its last step.

    Pydantic's own location also names the tag of the union's member it chose; the tag is no key of the file.
    """
    written: list[str] = []
    here: list[type[BaseModel]] = [model]
    for index, step in enumerate(location):
        tagged = [kind for kind in here if _has_tag(kind, step)]
        if len(here) > 1 and tagged and index + 1 < len(location):
            here = tagged
            continue
        if index and not here and not isinstance(step, int):
            continue  # the name of a plain type, if a value may have several types
        written.append(str(step))
        if index + 1 < len(location):
            fields = [kind.model_fields[str(step)] for kind in here if str(step) in kind.model_fields]
            inner = [kind for field in fields for kind in _flatten(field.annotation)]
            here = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return tuple(written), sorted({name for kind in here for name in kind.model_fields})


def _has_tag(kind: type[BaseModel], tag: str | int) -> bool:
    """Return whether a member of a union is the one with this tag."""
    literals = (f.annotation for f in kind.model_fields.values() if typing.get_origin(f.annotation) is Literal)
    return any(tag in typing.get_args(literal) for literal in literals)


def _unquoted(error: ErrorDetails, name: str) -> str:
    return str(error["ctx"][name]).strip("'")


def _flatten(annotation: object) -> list[object]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _flatten(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for option in typing.get_args(annotation) for kind in _flatten(option)]
    return [annotation]
