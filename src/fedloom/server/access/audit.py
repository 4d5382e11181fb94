"""The audit log: who joined, submitted, stopped, fetched, was revoked, from where; one JSON object a line, append-only.

`audit.jsonl` in the state folder. A large file is renamed, with the time in its name; none is removed.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

from fedloom.core.clock import SYSTEM_CLOCK
from fedloom.core.errors import LimitExceeded
from fedloom.server.access.calls import Pace

_log = logging.getLogger(__name__)

FILE = "audit.jsonl"
MAX_BYTES = 64 << 20
"""Size at which a file is renamed and a new one begun."""
MAX_LINES = 10_000
"""Number of lines read at a time."""
REPEAT_S = 60.0
"""Seconds in which repeated notices of a caller are written once."""
MAX_NOTICES = 4096
"""Notices remembered, to suppress repetitions."""
NOTICES, NOTICE_S = 600, 6.0
"""Notices of one caller that are written in a burst, and seconds per further one."""
MAX_TEXT = 200
"""Characters of one value."""
_TAIL_BYTES = 4 << 20


class Audit:
    """Writes and reads the log. Thread-safe.

    Args:
        folder: the server's state folder; None writes nothing down.
        now: the wall clock; seconds since 1970.
    """

    def __init__(self, folder: Path | None, now: Callable[[], float] = SYSTEM_CLOCK.time) -> None:
        self._file, self._now = None if folder is None else folder / FILE, now
        self._lock = threading.Lock()
        self._noticed: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._pace = Pace(NOTICES, NOTICE_S, "notices about", now)
        self._left_out: dict[str, int] = {}
        """Notices of each caller that were not written."""

    def record(self, event: str, who: str, peer: str, **details: str | int | float) -> None:
        """Add a line.

        Args:
            event: what happened, such as `joined`.
            who: the member's name; empty if the server has no members.
            peer: origin of the call, as gRPC writes addresses.
            details: further facts.
        """
        if self._file is None:
            return
        now = self._now()
        time_text = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        line = {"time": time_text, "event": event, "who": who, "from": unquote(peer).partition(":")[2], **details}
        text = json.dumps({key: value[:MAX_TEXT] if isinstance(value, str) else value for key, value in line.items()})
        with self._lock:
            self._write(self._file, text.encode() + b"\n", now)

    def notice(self, event: str, who: str, peer: str, **details: str | int | float) -> None:
        """Add a line about an action a caller may repeat at will.

        A repetition is written once a minute. Of a caller with too many different ones a line says how many were left
        out.
        """
        key, now = (event, who, *map(str, details.values())), self._now()
        with self._lock:
            last = self._noticed.pop(key, None)
            fresh = last is None or now - last >= REPEAT_S
            self._noticed[key] = now if last is None or fresh else last
            if len(self._noticed) > MAX_NOTICES:
                self._noticed.popitem(last=False)
        if not fresh:
            return
        try:
            self._pace.enter(who)
        except LimitExceeded:
            with self._lock:
                self._left_out[who] = self._left_out.get(who, 0) + 1
            return
        with self._lock:
            left_out = self._left_out.pop(who, 0)
        self.record(event, who, peer, **details, **({"left_out": left_out} if left_out else {}))

    def last(self, count: int) -> list[str]:
        """Return the latest lines of the present file, the oldest of them first."""
        return [] if self._file is None else last_lines(self._file, count)

    def _write(self, file: Path, line: bytes, now: float) -> None:
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line)
                full = os.fstat(descriptor).st_size > MAX_BYTES
            finally:
                os.close(descriptor)
            if full:
                file.rename(file.with_name(f"audit-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S%f}.jsonl"))
        except OSError as exc:
            _log.error("the audit log %s cannot be written: %s; the line: %s", file, exc, line.decode())


def last_lines(file: Path, count: int) -> list[str]:
    """Return the latest lines of a log, oldest first; empty if there is no log.

    Raises:
        OSError: it cannot be read.
    """
    if not file.exists() or count <= 0:
        return []
    with file.open("rb") as opened:
        begin = max(0, opened.seek(0, os.SEEK_END) - _TAIL_BYTES)
        opened.seek(begin)
        lines = opened.read().decode(errors="replace").splitlines()
    whole = lines[1:] if begin else lines
    return whole[-min(count, MAX_LINES) :]
