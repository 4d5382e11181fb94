"""What text settings are: every one in a plug-in is declared or a known plain word, and the walk finds them all."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from fedloom.core import registry
from fedloom.core.config import Experiment, PluginSettings, plugin_schema
from fedloom.core.kinds import Kind
from fedloom.core.setting_types import (
    SERVER_ONLY,
    CodeRef,
    DataPath,
    SettingKind,
    TextSetting,
    server_only_fields,
    text_settings,
)


def schemas() -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {"experiment": Experiment}
    for kind in Kind:
        found |= {f"{kind} {name}": plugin_schema(kind, name) for name in registry.names(kind)}
    return found


def undeclared(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """Every field of a model, and of those inside it, that takes a text and has no kind."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        if any(isinstance(mark, SettingKind) for mark in field.metadata):
            continue
        if issubclass(model, PluginSettings) and name == "name":
            continue  # resolved by the registry, and judged by its origin
        owner = next(kind for kind in reversed(model.__mro__) if name in vars(kind).get("__annotations__", {}))
        for taken in leaves(field.annotation):
            if isinstance(taken, type) and issubclass(taken, BaseModel):
                yield from undeclared(taken, seen)
            elif taken in (str, object, typing.Any):
                yield f"{owner.__module__.removeprefix('fedloom.')}.{owner.__qualname__}.{name}"


def leaves(annotation: object) -> Iterator[object]:
    """The types a value may have at any depth, those with a kind left out."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        if not any(isinstance(mark, SettingKind) for mark in inner[1:]):
            yield from leaves(inner[0])
    elif origin is Literal or not inner:
        yield () if origin is Literal else annotation
    else:
        is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
        for each in inner[is_mapping:]:  # keys are names of settings, not settings
            yield from leaves(each)


@pytest.mark.parametrize("name", schemas())
def test_every_text_setting_has_a_kind(name: str) -> None:
    new = sorted(set(undeclared(schemas()[name], set())))
    assert not new, f"give these a kind of core.setting_types (DataPath, CodeRef, ColumnName, PlainWord, …): {new}"


def test_a_new_text_setting_is_found_wherever_it_is() -> None:
    class Inner(BaseModel):
        file: DataPath
        note: str

    class Config(PluginSettings):
        deep: tuple[dict[str, Annotated[Inner | int, Field()]], ...] = ()
        many: Mapping[str, Sequence[str]] = {}
        either: Literal["a", "b"] | None = None
        code: tuple[CodeRef, ...] = ()

    home = f"{__name__}.{Config.__qualname__.rpartition('.')[0]}"
    assert sorted(undeclared(Config, set())) == sorted([f"{home}.Inner.note", f"{home}.Config.many"])


class Here(BaseModel):
    kind: Literal["here"] = "here"
    place: str
    note: str = ""


class File(BaseModel):
    kind: Literal["file"] = "file"
    place: DataPath
    note: str = ""


class Made(BaseModel):
    kind: Literal["made"] = "made"
    place: CodeRef
    given: dict[str, DataPath] = {}


class Whole(BaseModel):
    plain: str = ""
    path: DataPath = ""
    code: CodeRef | None = None
    under: File | None = None
    either: Annotated[Here | File | Made, Field(discriminator="kind")] | None = None
    two: Here | File | None = None
    several: tuple[File, ...] = ()
    paths: list[DataPath | int] = []
    named: dict[str, DataPath] = {}
    models: dict[str, Made] = {}
    called: CodeRef = Field(default="", alias="class")
    optional: Annotated[DataPath | None, Field()] = None
    number: int = 0


PLAIN, PATH, CODE = SettingKind.PLAIN, SettingKind.PATH, SettingKind.CODE


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"plain": "x"}, [("plain", "x", PLAIN, True)]),
        ({"path": "x", "code": "m:n"}, [("path", "x", PATH, True), ("code", "m:n", CODE, True)]),
        ({"optional": "x"}, [("optional", "x", PATH, True)]),
        ({"optional": None, "number": 3}, []),
        (
            {"under": {"place": "x", "note": "y"}},
            [("under.place", "x", PATH, True), ("under.note", "y", PLAIN, True)],
        ),
        (  # the tag is not looked at: whoever lies about it gains nothing
            {"either": {"kind": "here", "place": "x", "note": "y"}},
            [
                ("either.kind", "here", PLAIN, True),
                ("either.place", "x", CODE, True),
                ("either.note", "y", PLAIN, True),
            ],
        ),
        ({"two": {"place": "x"}}, [("two.place", "x", PATH, True)]),
        (
            {"several": [{"place": "x"}, {"place": "y"}]},
            [("several.0.place", "x", PATH, True), ("several.1.place", "y", PATH, True)],
        ),
        ({"paths": ["x", 1, "y"]}, [("paths.0", "x", PATH, True), ("paths.2", "y", PATH, True)]),
        ({"named": {"a": "x"}}, [("named.a", "x", PATH, True)]),
        (
            {"models": {"a": {"place": "m:n", "given": {"b": "x"}}}},
            [("models.a.place", "m:n", CODE, True), ("models.a.given.b", "x", PATH, True)],
        ),
        ({"class": "m:n"}, [("class", "m:n", CODE, True)]),
        ({"called": "m:n"}, [("called", "m:n", CODE, True)]),
        ({"made_up": "x"}, [("made_up", "x", PLAIN, False)]),
        (
            {"under": {"made_up": ["x", {"y": "z"}]}},
            [("under.made_up.0", "x", PLAIN, False), ("under.made_up.1.y", "z", PLAIN, False)],
        ),
    ],
)
def test_the_walk_finds_every_text_and_its_kind(
    values: dict[str, object], found: list[tuple[str, str, SettingKind, bool]]
) -> None:
    assert [(s.dotted, s.value, s.kind, s.declared) for s in text_settings(Whole, values)] == found


def test_places_are_given_step_by_step() -> None:
    (only,) = text_settings(Whole, {"several": [{"place": "x"}]})
    assert only == TextSetting(("several", 0, "place"), "x", SettingKind.PATH, declared=True)


def test_fields_of_the_server_alone_are_known_by_their_mark() -> None:
    class Settings(BaseModel):
        secret: Annotated[str, SERVER_ONLY] = ""
        shared: str = ""

    assert server_only_fields(Settings) == {"secret"}
    assert server_only_fields(Experiment) == {"best", "checkpoint", "runtime"}


def test_union_members_of_both_spellings_are_read() -> None:
    assert list(leaves(int | str)) == [int, str] == list(leaves(typing.Union[int, str]))  # noqa: UP007
    assert isinstance(int | str, types.UnionType)
