"""Events as log records: each line of a server's log names its run, round and node."""

from __future__ import annotations

import logging

from fedloom.core.event_text import event_line
from fedloom.core.events import Event

_log = logging.getLogger(__name__)
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING}


class LogSink:
    """Logs events, with `run`, `round` and `node` in each record."""

    def write(self, event: Event) -> None:
        line = event_line(event)
        if line is not None:
            _log.log(_LEVELS[line.level], "%s", line.text, extra=dict(line.about))

    def close(self) -> None:
        """Do nothing: nothing is buffered."""
