"""Checks that a plug-in is documented."""

from __future__ import annotations

import typing
from typing import Annotated

from pydantic import BaseModel

from fedloom.core import registry
from fedloom.core.config import plugin_schema
from fedloom.core.kinds import Kind


def assert_explained(kind: Kind, name: str) -> None:
    """Check that a plug-in's docstring begins with a sentence and that all its settings have docstrings.

    A table of settings is explained by the docstring of its class.

    Raises:
        AssertionError: it does not, or some have none; the message names them.
    """
    summary = registry.summary(kind, name)
    assert summary.endswith("."), f"{kind.section} {name!r}: the docstring's first line is {summary!r}, not a sentence"
    fields = plugin_schema(kind, name).model_fields
    bare = [
        field
        for field, info in fields.items()
        if not info.description and field != "name" and not _is_group(info.annotation)
    ]
    assert not bare, f"{kind.section} {name!r}: settings without a docstring: {bare}"


def _is_group(annotation: object) -> bool:
    """Return whether a setting is a table of settings, or one of several, with separate docstrings."""
    members = [each for each in typing.get_args(annotation) if each is not type(None)] or [annotation]
    inner = [typing.get_args(each)[0] if typing.get_origin(each) is Annotated else each for each in members]
    return all(isinstance(each, type) and issubclass(each, BaseModel) for each in inner)
