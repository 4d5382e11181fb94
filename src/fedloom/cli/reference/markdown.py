"""Markdown, and Python types as people call them."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_WORDS: Mapping[object, str] = {
    int: "integer",
    float: "number",
    str: "string",
    bool: "true or false",
    types.NoneType: "none",
    Any: "any value",
    object: "any value",
}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

GENERATED = "<!-- Written by `make docs` from the code; do not edit. -->"


def document(title: str, introduction: str, *parts: str) -> str:
    """Return a page: a note that it is generated, its title, introduction, parts."""
    return "\n\n".join([GENERATED, f"# {title}", introduction, *parts]) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; bars and line ends in its cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def prose(docstring: str | None) -> str:
    """Return a docstring as running text."""
    return " ".join((docstring or "").split())


def code(text: str) -> str:
    """Return text in a code span."""
    return f"`{text}`"


def type_words(annotation: object, metadata: Sequence[object] = ()) -> str:
    """Return a type with its bounds: `integer ≥ 1 or none`."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        notes = [each for note in inner[1:] for each in (note.metadata if isinstance(note, FieldInfo) else [note])]
        return type_words(inner[0], [*notes, *metadata])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(option, metadata) for option in inner))
    if origin is Literal:
        return ", ".join(code(json.dumps(choice)) for choice in inner)
    if origin in (tuple, list) or annotation in (tuple, list):
        return f"list of {type_words(inner[0])}" if inner else "list"
    if origin in (dict, Mapping) or annotation in (dict, Mapping):
        return f"table of {type_words(inner[1])}" if inner else "table"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    word = _WORDS.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return " ".join([word, *([] if annotation is types.NoneType else _bounds(metadata))])


def default_words(field: FieldInfo) -> str:
    """Return a field's default as in TOML, or that it is required."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return code(json.dumps(value.value if isinstance(value, Enum) else value))


def models_in(annotation: object) -> list[type[BaseModel]]:
    """Return the models a type consists of, in order: one for a group of settings, several for a choice of groups."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = (
        typing.get_args(annotation)[:1] if typing.get_origin(annotation) is Annotated else typing.get_args(annotation)
    )
    return [model for each in inner for model in models_in(each)]


def _bounds(metadata: Sequence[object]) -> list[str]:
    """Return numeric limits, as annotated-types spells them: an attribute named after the comparison."""
    found = [(sign, getattr(note, name)) for note in metadata for name, sign in _BOUNDS.items() if hasattr(note, name)]
    return [" and ".join(f"{sign} {_power(limit)}" for sign, limit in found)] if found else []


def _power(limit: object) -> str:
    if isinstance(limit, int) and limit > 10**6 and limit & (limit - 1) == 0:
        return f"2^{limit.bit_length() - 1}"
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
