"""Types of text settings, and a walk that finds them: the basis of the checks on server and node.

A plug-in's `Config` declares a field as `DataPath` or `CodeRef`; other text is a plain word, which nothing opens or
imports. Sections and fields marked `SERVER_ONLY` stay on the server.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, TypeAlias

from pydantic import BaseModel


class SettingKind(Enum):
    """What a text setting refers to."""

    PLAIN = "a plain word"
    PATH = "a path"
    CODE = "code"


SERVER_ONLY = object()
"""Marks a field of a model, in its `Annotated`, that is never sent to a node."""

DataPath: TypeAlias = Annotated[str, SettingKind.PATH]
"""A file or folder that the workload reads. A node opens it only below its data folder."""
CodeRef: TypeAlias = Annotated[str, SettingKind.CODE]
"""`MODULE:NAME` or `FILE.py:NAME`, which is imported and may be called. A node needs its policy's permission."""


@dataclass(frozen=True, slots=True)
class TextSetting:
    """One text of a table of settings."""

    steps: tuple[str | int, ...]
    """Its location, from the table inwards."""
    value: str
    kind: SettingKind
    declared: bool
    """Whether the schema has the field; an undeclared one is rejected when the settings are parsed."""

    @property
    def dotted(self) -> str:
        """Return the location as a user writes it."""
        return ".".join(map(str, self.steps))


def text_settings(schema: type[BaseModel], values: Mapping[str, object]) -> Iterator[TextSetting]:
    """Yield every text in a table that is not validated yet, with the kind its schema gives it.

    If a table may be one of several models, a field's kind is the strictest of theirs.

    Args:
        schema: the table's model.
        values: the table, as it was written.
    """
    yield from _in_table((schema,), values, ())


def server_only_fields(schema: type[BaseModel]) -> frozenset[str]:
    """Return the names of a model's fields that are never sent to a node."""
    return frozenset(name for name, field in schema.model_fields.items() if SERVER_ONLY in field.metadata)


def _in_table(
    models: Sequence[type[BaseModel]], table: Mapping[str, object], steps: tuple[str | int, ...]
) -> Iterator[TextSetting]:
    for key, value in table.items():
        annotations = [
            Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
            for model in models
            for name, field in model.model_fields.items()
            if key in (name, field.alias)
        ]
        yield from _in_value(annotations, value, (*steps, key))


def _in_value(annotations: Sequence[object], value: object, steps: tuple[str | int, ...]) -> Iterator[TextSetting]:
    flat = [each for annotation in annotations for each in _flat(annotation)]
    if isinstance(value, str):
        kinds = {kind for kind, _ in flat}
        kind = next((k for k in (SettingKind.CODE, SettingKind.PATH) if k in kinds), SettingKind.PLAIN)
        yield TextSetting(steps, value, kind, declared=bool(annotations))
    elif isinstance(value, Mapping):
        models = [kind for _, kind in flat if isinstance(kind, type) and issubclass(kind, BaseModel)]
        inner = [item for _, kind in flat for item in _value_types(kind)]
        if models or not inner:
            yield from _in_table(models, value, steps)
        else:
            for key, each in value.items():
                yield from _in_value(inner, each, (*steps, str(key)))
    elif isinstance(value, list | tuple):
        inner = [item for _, kind in flat for item in typing.get_args(kind) if item is not Ellipsis]
        for index, each in enumerate(value):
            yield from _in_value(inner, each, (*steps, index))


def _flat(annotation: object, kind: SettingKind = SettingKind.PLAIN) -> Iterator[tuple[SettingKind, object]]:
    """Yield the members of a union, each with the kind an `Annotated` around it gives."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *marks = typing.get_args(annotation)
        given = next((mark for mark in marks if isinstance(mark, SettingKind)), kind)
        yield from _flat(inner, given)
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _flat(member, kind)
    else:
        yield kind, annotation


def _value_types(annotation: object) -> tuple[object, ...]:
    """Return the types of a mapping's values."""
    origin = typing.get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return typing.get_args(annotation)[1:]
    return ()
