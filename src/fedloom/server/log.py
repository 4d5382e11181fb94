"""Events as log records: a server's log tells of runs, rounds and nodes; with `--log json`, to machines."""

from __future__ import annotations

import logging
from typing import Any

from fedloom.core.events import ClientLost, NodeChanged, NodeRefused, Notice, RoundFinished, RunFinished, RunStarted

_log = logging.getLogger(__name__)


class JsonSink:
    """Logs what happens, with what it is about in each record's `run`, `round` and `node`."""

    def write(self, event: Any) -> None:
        match event:
            case RunStarted():
                _say("run started", run=event.run_id, round=event.first_round)
            case RoundFinished():
                lost = len(event.record.failures)
                seconds = event.record.timing.total_s
                _say(f"round finished in {seconds:.3f} s, {lost} lost", run=event.run_id, round=event.record.round)
            case ClientLost():
                failure = event.failure
                _say(
                    f"client {failure.client} lost: {failure.error}: {failure.message}",
                    run=event.run_id,
                    round=failure.round,
                    node=failure.node,
                )
            case NodeChanged():
                _say(f"node {event.state}" + (f": {event.reason}" if event.reason else ""), node=event.node)
            case NodeRefused():
                _say(f"node refused: {event.reason}", run=event.run_id, round=event.round, node=event.node)
            case Notice():
                _say(event.message, run=event.run_id)
            case RunFinished():
                _say(
                    f"run {event.summary.status}" + (f": {event.summary.error}" if event.summary.error else ""),
                    run=event.run_id,
                )

    def close(self) -> None:
        """Nothing is kept back."""


def _say(message: str, **about: Any) -> None:
    _log.info("%s", message, extra={key: value for key, value in about.items() if value != ""})
