"""Types of text settings, a walk that finds them, and the one rule by which server and node judge them.

A plug-in's `Config` gives each of its text fields one of the kinds below. A text without a kind, of a plug-in that
gives none, is judged by its looks as well. Sections and fields marked `SERVER_ONLY` stay on the server.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel


class SettingKind(Enum):
    """What a text setting refers to."""

    PLAIN = "a plain word"
    """Nothing opens or imports it. Also the kind of a text whose field has none."""
    COLUMN = "a column's name"
    FREE = "free text"
    """For people, or passed to a hosted app: allowing the app includes trusting its use of the text."""
    FILE_NAME = "the name of a file in a folder that another setting names"
    HUB = "a data set: a path, or a name at a hub"
    PATH = "a path"
    CLASS = "a class that the plug-in knows by its name, or code"
    APP = "a folder of code"
    CODE = "code"


STRICTEST = tuple(reversed(SettingKind))
"""Kinds in the order in which they win where a field may be of several."""


@dataclass(frozen=True, slots=True)
class Known:
    """Values of a field that are names, whatever its kind is for others: packaged models, wrappers by name."""

    names: frozenset[str]


DATA = "$DATA"
"""How an experiment names a node's own data folder, at the start of a path."""
SERVER_ONLY = object()
"""Marks a field of a model, in its `Annotated`, that is never sent to a node."""

ALL_OTHERS = object()
"""Marks a field of columns of which none named means all others of the table."""

DataPath: TypeAlias = Annotated[str, SettingKind.PATH]
"""A file or folder that the workload reads. A node opens it only below its data folder."""
HubName: TypeAlias = Annotated[str, SettingKind.HUB]
"""A path as `DataPath`, or a data set's name at a hub. A node that has joined a server takes the path alone."""
FileName: TypeAlias = Annotated[str, SettingKind.FILE_NAME]
"""The name, or a pattern of names, of files in a folder that another setting gives."""
ColumnName: TypeAlias = Annotated[str, SettingKind.COLUMN]
"""A column of a table. A node reads those that its policy names."""
PlainWord: TypeAlias = Annotated[str, SettingKind.PLAIN]
"""A word that nothing opens or imports."""
FreeText: TypeAlias = Annotated[str, SettingKind.FREE]
"""Text for people, or for a hosted app."""
ClassName: TypeAlias = Annotated[str, SettingKind.CLASS]
"""A class that the plug-in knows by its name, or `MODULE:CLASS`, which is code."""
AppFolder: TypeAlias = Annotated[str, SettingKind.APP]
"""The folder of a hosted app, from which code is imported."""
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
    known: bool = False
    """Whether the value is one of the names that its field knows."""

    @property
    def dotted(self) -> str:
        """Return the location as a user writes it."""
        return ".".join(map(str, self.steps))


def text_settings(schema: type[BaseModel], values: Mapping[str, object]) -> Iterator[TextSetting]:
    """Yield every text in a table that is not validated yet, with the kind its schema gives it.

    If a table may be one of several models, a field's kind is their strictest.

    Args:
        schema: the table's model.
        values: the table, as it was written.
    """
    yield from _in_table((schema,), values, ())


Offence = Literal["code", "path", "empty"]
"""What a text refers to that needs permission; `empty`: a path that is none."""
_CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
"""`module:attribute`, which may be imported and called."""
_PATH = re.compile(r"[/\\~$\0]|\.\.")


def offence(setting: TextSetting) -> Offence | None:
    """Judge a text by the kind of its field: the one rule of server and node.

    Returns:
        What needs permission; None if the text is a name or a word that nothing opens or imports.
    """
    value, kind = setting.value, setting.kind
    if setting.known or kind is SettingKind.FREE:
        return None
    if kind in (SettingKind.CODE, SettingKind.APP):
        return "code"
    if kind is SettingKind.CLASS:
        return None if value.isidentifier() else "code"
    if kind in (SettingKind.PATH, SettingKind.HUB):
        return "path" if value.strip() else "empty"
    if _CODE.fullmatch(value):
        return "code"
    return "path" if _PATH.search(value) or os.path.lexists(value) else None


def module_file(code: str, folder: Path) -> Path | None:
    """Return the file in a folder that `MODULE:NAME` refers to, links followed; None if it lies elsewhere.

    Args:
        code: what is to be imported.
        folder: where its module must lie, resolved.
    """
    module, colon, name = code.partition(":")
    steps = module.split(".")
    if not (colon and all(step.isidentifier() for step in (*steps, *name.split(".")))):
        return None
    place = folder.joinpath(*steps)
    for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
        if file.is_file():
            return file if file.resolve().is_relative_to(folder) else None
    return None


def default_columns(schema: type[BaseModel]) -> frozenset[str]:
    """Return the columns that a schema, and those inside it, name where nothing else is set."""
    found: set[str] = set()
    seen: set[type[BaseModel]] = set()

    def walk(annotation: object) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation in seen:
                return
            seen.add(annotation)
            for field in annotation.model_fields.values():
                kinds = {kind for kind, _ in _flat(Annotated[(field.annotation, *field.metadata, None)])}
                if SettingKind.COLUMN in kinds and isinstance(field.default, str):
                    found.add(field.default)
                walk(field.annotation)
        for inner in typing.get_args(annotation):
            walk(inner)

    walk(schema)
    return frozenset(found)


def open_columns(table: BaseModel, where: str = "") -> Iterator[str]:
    """Yield the settings of a table that read columns it does not name, by their dotted location."""
    for name, field in type(table).model_fields.items():
        value = table.__dict__[name]
        if ALL_OTHERS in field.metadata and not value:
            yield f"{where}{name}"
        elif isinstance(value, BaseModel):
            yield from open_columns(value, f"{where}{name}.")


def server_only_fields(schema: type[BaseModel]) -> frozenset[str]:
    """Return the names of a model's fields that are never sent to a node."""
    return frozenset(name for name, field in schema.model_fields.items() if SERVER_ONLY in field.metadata)


_FUNCTIONS = ("_fn", "_rule")
"""Endings of keys whose texts name functions, in tables of options without a schema."""


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
        kind = next((k for k in STRICTEST if k in kinds), SettingKind.PLAIN)
        if kind is SettingKind.PLAIN and isinstance(steps[-1], str) and steps[-1].endswith(_FUNCTIONS):
            kind = SettingKind.CODE
        known = any(value in names.names for annotation in annotations for names in _known(annotation))
        yield TextSetting(steps, value, kind, declared=bool(annotations), known=known)
    elif isinstance(value, Mapping):
        models = [kind for _, kind in flat if isinstance(kind, type) and issubclass(kind, BaseModel)]
        inner = [Annotated[item, kind] for kind, each in flat for item in _inside(each, _value_types(each))]
        if models or not inner:
            yield from _in_table(models, value, steps)
        else:
            for key, each in value.items():
                yield from _in_value(inner, each, (*steps, str(key)))
    elif isinstance(value, list | tuple):
        inner = [Annotated[item, kind] for kind, each in flat for item in _inside(each, typing.get_args(each))]
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


def _inside(annotation: object, given: Sequence[object]) -> Iterator[object]:
    """Return the type of a value inside: the annotation's, or any if the value may be anything."""
    if annotation in (object, typing.Any):
        yield annotation
    yield from (item for item in given if item is not Ellipsis)


def _known(annotation: object) -> Iterator[Known]:
    """Return the names an annotation defines, at any depth of unions."""
    if typing.get_origin(annotation) is Annotated:
        inner, *marks = typing.get_args(annotation)
        yield from (mark for mark in marks if isinstance(mark, Known))
        yield from _known(inner)
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _known(member)


def _value_types(annotation: object) -> tuple[object, ...]:
    """Return the types of a mapping's values."""
    origin = typing.get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return typing.get_args(annotation)[1:]
    return ()
