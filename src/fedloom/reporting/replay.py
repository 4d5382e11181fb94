"""Converts events as JSON, from `events.jsonl` or a watched server, to values."""

from __future__ import annotations

import dataclasses
import typing

import pydantic

from fedloom.core import events
from fedloom.core.errors import BadMessage
from fedloom.core.records import Info

_KINDS = {kind.__name__: kind for kind in typing.get_args(events.Event)}


def event_of(values: Info) -> events.Event:
    """Return the event of a JSON object.

    Args:
        values: `event`, the class's name; its fields; others, such as `at`, are left.

    Raises:
        BadMessage: no such event, or fields are missing or of the wrong type.
    """
    kind = _KINDS.get(str(values.get("event")))
    if kind is None:
        raise BadMessage(f"unknown event {values.get('event')!r}; known here: {', '.join(_KINDS)}. Another version?")
    fields = {field.name: values[field.name] for field in dataclasses.fields(kind) if field.name in values}
    try:
        made: events.Event = pydantic.TypeAdapter(kind).validate_python(fields)
    except pydantic.ValidationError as exc:
        raise BadMessage(f"event {kind.__name__}: {exc.errors()[0]['msg']} at {exc.errors()[0]['loc']}") from exc
    return made
