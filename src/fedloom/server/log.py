"""Events as log records: each line of a server's log names its run, round and node."""

from __future__ import annotations

import logging

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

_log = logging.getLogger(__name__)


class LogSink:
    """Logs events, with `run`, `round` and `node` in each record."""

    def write(self, event: Event) -> None:
        match event:
            case RunStarted():
                rounds = event.rounds or "an open number of"
                _say(
                    f"run started: {event.name}, {rounds} rounds of {event.cohort} of {event.clients} clients",
                    run=event.run_id,
                    round=event.first_round,
                )
            case RoundFinished():
                _say(_round_text(event.record), run=event.run_id, round=event.record.round)
            case ClientLost():
                failure = event.failure
                _say(
                    f"client {failure.client} failed at stage {failure.stage}: {failure.error}: {failure.message}",
                    logging.WARNING,
                    run=event.run_id,
                    round=failure.round,
                    node=failure.node,
                )
            case NodeChanged():
                _say(f"node {event.state}" + (f": {event.reason}" if event.reason else ""), node=event.node)
            case NodeRefused():
                _say(
                    f"node {'failed' if event.kind == 'failure' else 'refused'}: {event.reason}",
                    logging.WARNING,
                    run=event.run_id,
                    round=event.round,
                    node=event.node,
                )
            case Notice():
                _say(event.message, run=event.run_id)
            case RunFinished():
                text = f"run {event.summary.status}" + (f": {event.summary.error}" if event.summary.error else "")
                _say(text, logging.WARNING if event.summary.error else logging.INFO, run=event.run_id)

    def close(self) -> None:
        """Do nothing: nothing is buffered."""


def _round_text(record: RoundRecord) -> str:
    """Return a one-line summary of a round."""
    asked, lost = len(record.cohort), len(record.failures)
    values = "".join(f", {name} {value:.4g}" for name, value in sorted((record.evaluation or {}).items()))
    return f"round finished in {record.timing.total_s:.3g} s, {asked} sampled, {lost} failed{values}"


def _say(message: str, level: int = logging.INFO, **about: str | int) -> None:
    _log.log(level, "%s", message, extra={key: value for key, value in about.items() if value != ""})
