"""Events as lines of a log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from fedloom.core.events import (
    ClientLost,
    Event,
    NodeChanged,
    NodeRefused,
    Notice,
    RoundFinished,
    RunFinished,
    RunStarted,
)
from fedloom.core.history import RoundRecord


@dataclass(frozen=True, slots=True)
class EventLine:
    """An event in words."""

    text: str
    about: Mapping[str, str | int] = field(default_factory=dict)
    """Its `run`, `round` and `node`, those it has."""
    level: Literal["info", "warning"] = "info"


def event_line(event: Event) -> EventLine | None:
    """Return an event as a line of a log; None for those about the progress within a round."""
    match event:
        case RunStarted():
            rounds = event.rounds or "an open number of"
            text = f"run started: {event.name}, {rounds} rounds of {event.cohort} of {event.clients} clients"
            return _line(text, run=event.run_id, round=event.first_round)
        case RoundFinished():
            return _line(_round_text(event.record), run=event.run_id, round=event.record.round)
        case ClientLost():
            failure = event.failure
            text = f"client {failure.client} failed at stage {failure.stage}: {failure.error}: {failure.message}"
            return _line(text, "warning", run=event.run_id, round=failure.round, node=failure.node)
        case NodeChanged():
            return _line(f"node {event.state}" + (f": {event.reason}" if event.reason else ""), node=event.node)
        case NodeRefused():
            text = f"node {'failed' if event.kind == 'failure' else 'refused'}: {event.reason}"
            return _line(text, "warning", run=event.run_id, round=event.round, node=event.node)
        case Notice():
            return _line(event.message, run=event.run_id)
        case RunFinished():
            error = event.summary.error
            text = f"run {event.summary.status}" + (f": {error}" if error else "")
            return _line(text, "warning" if error else "info", run=event.run_id)
    return None


def _line(text: str, level: Literal["info", "warning"] = "info", **about: str | int) -> EventLine:
    return EventLine(text, {key: value for key, value in about.items() if value != ""}, level)


def _round_text(record: RoundRecord) -> str:
    """Return a one-line summary of a round."""
    sampled, lost = len(record.cohort), len(record.failures)
    values = "".join(f", {name} {value:.4g}" for name, value in sorted((record.evaluation or {}).items()))
    return f"round finished in {record.timing.total_s:.3g} s, {sampled} sampled, {lost} failed{values}"
