"""`records.md`: files of a run: its summary, its round records, its events."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping

from pydantic import BaseModel

from fedloom.cli.reference.markdown import code, document, prose, table, type_words
from fedloom.core import events, history, records

_MODELS: Mapping[type[BaseModel], str] = {
    history.RunSummary: "",
    history.RoundRecord: "",
    history.Traffic: "In a round record: `traffic`.",
    history.Timing: "In a round record: `timing`.",
    history.NodeShare: "In a round record: `nodes`, by the node's name.",
    history.Choice: "`fedloom replay` recomputes these choices.",
}


def render() -> str:
    """Return the whole page."""
    return document(
        "Records",
        "Files of a run's folder for programs. Names that end in `_s` are seconds, in `bytes_*` bytes; `params_*` "
        "count array elements. Rounds count from 1. A metric that was not a number is `null`.",
        *(part for model, place in _MODELS.items() for part in _model(model, place)),
        "## ReportLine",
        "In a choice: `probed` and `trained`.",
        *_fields(history.ReportLine),
        "## ClientFailure",
        "In a round record: `failures`.",
        *_fields(records.ClientFailure),
        "## Events",
        "Lines of `events.jsonl`: the event's name in `event`, the time in `at` (ISO 8601, UTC), and its fields.",
        *(part for kind in typing.get_args(events.Event) for part in _event(kind)),
    )


def _model(model: type[BaseModel], place: str) -> list[str]:
    rows = [
        (code(name), type_words(field.annotation, field.metadata), prose(field.description))
        for name, field in model.model_fields.items()
    ]
    paragraphs = [text for text in (place, prose(model.__doc__)) if text]
    return [f"## {model.__name__}", *paragraphs, table(("field", "type", "meaning"), rows)]


def _event(kind: type) -> list[str]:
    return [f"### {kind.__name__}", *_fields(kind)]


def _fields(kind: type) -> list[str]:
    """Return a dataclass's description and fields."""
    hints = typing.get_type_hints(kind)
    rows = [(code(field.name), _linked(hints[field.name])) for field in dataclasses.fields(kind)]
    return [prose(kind.__doc__), table(("field", "type"), rows)]


def _linked(annotation: object) -> str:
    """Return a type's name, linked if it is a record described above."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | records.ClientFailure | history.ReportLine):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    return type_words(annotation)
