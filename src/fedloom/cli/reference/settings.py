"""`settings.md`: every key of an experiment and of every plug-in, from the models that read them."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedloom.cli.reference.markdown import code, default_words, document, models_in, prose, table, type_words
from fedloom.client.policy import Policy
from fedloom.core import registry
from fedloom.core.config import Experiment, PluginSettings
from fedloom.core.kinds import Kind
from fedloom.core.registry import PartRef

_HEAD = ("key", "type", "default", "meaning")


def render() -> str:
    """Return the whole page."""
    return document(
        "Settings",
        "An experiment is a TOML file. Every key below can also be given on the command line, as `--set KEY=VALUE`. "
        "Unknown keys are errors.",
        "## Experiment",
        *_model(Experiment, "", level=3),
        *(part for kind in Kind for part in _kind(kind)),
        "## A node's policy",
        "A separate file, `policy.toml` next to a node's key; an experiment cannot change it.",
        *_model(Policy, "", level=3),
    )


def _kind(kind: Kind) -> Iterator[str]:
    """Yield all plug-ins of a kind that come with fedloom."""
    names = [name for name in registry.names(kind) if PartRef(kind, name, "config").origin == "bundled"]
    yield f"## {kind.capitalize()}"
    choices = ", ".join(code(name) for name in names)
    yield f"Chosen by `{kind.section}.name`: {choices}, or your own module or file."
    for name in names:
        yield f"### {kind.section}: `{name}`"
        yield registry.summary(kind, name)
        config: type[PluginSettings] = registry.part(kind, name, "config").Config
        yield from _model(config, f"{kind.section}.", level=4)


def _model(model: type[BaseModel], prefix: str, level: int) -> Iterator[str]:
    """Yield a model's own keys as a table, then the groups inside it."""
    yield prose(model.__doc__)
    yield table(_HEAD, [_row(_key(name, field), field, prefix) for name, field in model.model_fields.items()])
    for name, field in model.model_fields.items():
        choices = [choice for choice in models_in(field.annotation) if not issubclass(choice, PluginSettings)]
        for choice in choices:
            path = f"{prefix}{_key(name, field)}"
            tag = _tag(choice) if len(choices) > 1 else None
            yield f"{'#' * level} `{path}`" + (f' with `{tag[0]} = "{tag[1]}"`' if tag else "")
            yield from _model(choice, f"{path}.", min(level + 1, 6))


def _row(key: str, field: FieldInfo, prefix: str) -> tuple[str, str, str, str]:
    groups = models_in(field.annotation)
    tags = [tag for group in groups if (tag := _tag(group))]
    kind = type_words(field.annotation, field.metadata)
    if len(groups) > 1 and len(tags) == len(groups):
        kind = f"table; `{tags[0][0]}` is one of {', '.join(code(value) for _, value in tags)}"
    default = default_words(field)
    if not default and isinstance(field.default, BaseModel) and len(groups) > 1:
        tag = _tag(type(field.default))
        default = code(f'{tag[0]} = "{tag[1]}"') if tag else ""
    meaning = prose(field.description or (groups[0].__doc__ if len(groups) == 1 else ""))
    return code(prefix + key), kind, default, meaning


def _key(name: str, field: FieldInfo) -> str:
    """Return a field's name as in TOML."""
    return field.alias or name


def _tag(model: type[BaseModel]) -> tuple[str, str] | None:
    """Return the field, and its only value, that identifies a model within a choice."""
    for name, field in model.model_fields.items():
        values = typing.get_args(field.annotation)
        if typing.get_origin(field.annotation) is Literal and len(values) == 1:
            return _key(name, field), str(values[0])
    return None
