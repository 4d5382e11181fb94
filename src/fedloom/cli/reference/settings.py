"""`settings.md`: every key of an experiment and of every plug-in, from the models that read them.

What several plug-ins have in common, a group of settings or those of a base class, is printed once and linked.
"""

from __future__ import annotations

import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedloom.cli.reference.markdown import code, default_words, document, models_in, prose, table, type_words
from fedloom.client.policy import Policy
from fedloom.core import registry
from fedloom.core.config import Experiment, PluginSettings, Settings, plugin_schema
from fedloom.core.kinds import Kind
from fedloom.core.registry import PartRef

_HEAD = ("key", "type", "default", "meaning")
_SELECTORS = {
    "name": "Selects the plug-in or variant to which the other settings of this table belong.",
    "scheme": "Selects the partition scheme to which the other settings of this table belong.",
    "source": "Selects the data source to which the other settings of this table belong.",
    "layout": "Selects the layout of the files to which the other settings of this table belong.",
}
"""Meanings of settings that select the table's variant, if they have no description themselves."""
Model = type[BaseModel]


def render() -> str:
    """Return the whole page."""
    schemas = {kind: _schemas(kind) for kind in Kind}
    page = _Page(_shared([each for found in schemas.values() for each in found.values()]))
    return document(
        "Settings",
        "An experiment is a TOML file. Every key below can also be given on the command line, as `--set KEY=VALUE`. "
        "One that changes a plug-in's `name`, or the `scheme` or `source` of one of its tables, drops the settings of "
        "the old kind. Unknown keys are errors.",
        "## Experiment",
        *page.model(Experiment, "", level=3),
        *(part for kind, found in schemas.items() for part in _kind(page, kind, found)),
        "## Shared groups",
        "Settings that several plug-ins have. Before each key stands the setting that links here, such as "
        "`workload.training.` before `learning_rate`.",
        *page.shared(),
        "## A node's policy",
        "A separate file, `policy.toml` next to a node's key; an experiment cannot change it.",
        *page.model(Policy, "", level=3),
    )


def _schemas(kind: Kind) -> dict[str, type[PluginSettings]]:
    """Return the settings of all plug-ins of a kind that come with fedloom, by name."""
    names = [name for name in registry.names(kind) if PartRef(kind, name, "config").origin == "bundled"]
    return {name: plugin_schema(kind, name) for name in names}


def _kind(page: _Page, kind: Kind, schemas: Mapping[str, type[PluginSettings]]) -> Iterator[str]:
    yield f"## {kind.capitalize()}"
    choices = ", ".join(code(name) for name in schemas)
    yield f"Chosen by `{kind.section}.name`: {choices}, or your own module or file."
    for name, schema in schemas.items():
        yield f"### {kind.section}: `{name}`"
        yield registry.summary(kind, name)
        yield from page.model(schema, f"{kind.section}.", level=4)


@dataclass(frozen=True, slots=True)
class _Page:
    """What is printed once: groups, and base classes with settings, each with the title of its section."""

    titles: Mapping[Model, str]

    def model(self, model: Model, prefix: str, level: int) -> Iterator[str]:
        """Yield a model's own keys as a table, then the groups inside it that are its alone."""
        bases = [base for base in model.__mro__[1:] if base in self.titles]
        own = {name: each for name, each in model.model_fields.items() if self._is_own(model, name, bases)}
        yield prose(model.__doc__)
        if own:
            yield table(_HEAD, [self._row(_key(name, each), each, prefix) for name, each in own.items()])
        for base in bases:
            if not any(issubclass(other, base) for other in bases if other is not base):
                yield f"And the settings of {_link(self.titles[base])}."
        for name, each in own.items():
            groups = _groups(each)
            for group in groups:
                if group not in self.titles:
                    path = f"{prefix}{_key(name, each)}"
                    tag = _tag(group) if len(groups) > 1 else None
                    yield f"{'#' * level} `{path}`" + (f' with `{tag[0]} = "{tag[1]}"`' if tag else "")
                    yield from self.model(group, f"{path}.", min(level + 1, 6))

    def shared(self) -> Iterator[str]:
        """Yield the sections of everything that is printed once."""
        for model, title in self.titles.items():
            yield f"### {title}"
            yield from self.model(model, "", level=4)

    def _is_own(self, model: Model, name: str, bases: Sequence[type]) -> bool:
        """Return whether a setting stands with the model: no base printed elsewhere declares it.

        The name of a plug-in in a base class is left out: each plug-in has it with its own default.
        """
        if name == "name" and issubclass(model, PluginSettings):
            return model not in self.titles
        return not any(_owner(model, name) in base.__mro__ for base in bases)

    def _row(self, key: str, each: FieldInfo, prefix: str) -> tuple[str, str, str, str]:
        groups = models_in(each.annotation)
        tags = [tag for group in groups if (tag := _tag(group))]
        kind = type_words(each.annotation, each.metadata)
        if len(groups) > 1 and len(tags) == len(groups):
            kind = f"table; `{tags[0][0]}` is one of {', '.join(code(value) for _, value in tags)}"
        default = default_words(each)
        if not default and isinstance(each.default, BaseModel) and len(groups) > 1:
            tag = _tag(type(each.default))
            default = code(f'{tag[0]} = "{tag[1]}"') if tag else ""
        meaning = prose(each.description or (groups[0].__doc__ if len(groups) == 1 else ""))
        meaning = meaning or _SELECTORS.get(key, "")
        links = ", ".join(_link(self.titles[group]) for group in groups if group in self.titles)
        return code(prefix + key), kind, default, f"{meaning} See {links}.".lstrip() if links else meaning


def _shared(schemas: Sequence[Model]) -> dict[Model, str]:
    """Return what several plug-ins share: groups by the name of their setting, base classes by theirs."""
    places, names = Counter[Model](), dict[Model, str]()
    for schema in schemas:
        for model, name in _inside(schema):
            places[model] += 1
            names.setdefault(model, name)
    titles = dict[Model, str]()
    for model in (model for model, count in places.items() if count > 1):
        alike = sum(other.partition(" (")[0] == names[model] for other in titles.values())
        titles[model] = f"{names[model]} ({alike + 1})" if alike else names[model]
    return titles


def _inside(model: Model) -> Iterator[tuple[Model, str]]:
    """Yield the base classes that bring settings, and the groups inside a model at any depth, each with a name."""
    for base in model.__mro__[1:]:
        if issubclass(base, Settings) and base not in (Settings, PluginSettings) and vars(base).get("__annotations__"):
            yield base, base.__name__
    for name, each in model.model_fields.items():
        groups = _groups(each)
        for group in groups:
            tag = _tag(group) if len(groups) > 1 else None
            yield group, f"{_key(name, each)}: {tag[1]}" if tag else _key(name, each)
            yield from _inside(group)


def _groups(each: FieldInfo) -> list[Model]:
    return [group for group in models_in(each.annotation) if not issubclass(group, PluginSettings)]


def _owner(model: type[BaseModel], name: str) -> type:
    """Return the class that declares a setting as the model has it."""
    return next(base for base in model.__mro__ if name in vars(base).get("__annotations__", {}))


def _link(title: str) -> str:
    anchor = "".join(sign for sign in title.lower() if sign.isalnum() or sign in " -_")
    return f"[{title}](#{anchor.replace(' ', '-')})"


def _key(name: str, each: FieldInfo) -> str:
    """Return a field's name as in TOML."""
    return each.alias or name


def _tag(model: type[BaseModel]) -> tuple[str, str] | None:
    """Return the field, and its only value, that identifies a model within a choice."""
    for name, each in model.model_fields.items():
        values = typing.get_args(each.annotation)
        if typing.get_origin(each.annotation) is Literal and len(values) == 1:
            return _key(name, each), str(values[0])
    return None
