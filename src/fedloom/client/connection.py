"""History of an agent's connections: pauses before the next one, and how often a loss is logged."""

from __future__ import annotations

import logging
import time

_log = logging.getLogger(__name__)

SHORT_S = 5.0
"""A connection that breaks sooner is a short one: the next is made after a pause, which grows."""
LOG_S = 10.0
"""Minimum number of seconds between two log lines about lost connections."""


class Connection:
    """One agent's connections, one after another.

    Args:
        node: the agent's name, for the log.
    """

    def __init__(self, node: str) -> None:
        self._node = node
        self._opened_at: float | None = None
        self._logged_at = float("-inf")
        self._unlogged = 0
        self._short = 0
        """Short connections in a row."""

    @property
    def was_short(self) -> bool:
        """Return whether the last connection broke soon after it was made."""
        return self._short > 0

    def opened(self) -> None:
        """Record that a connection has been opened now."""
        self._opened_at = time.monotonic()

    def lost(self, exc: Exception) -> None:
        """Log that the connection is lost, unless that was logged a moment ago."""
        now = time.monotonic()
        short = self._opened_at is not None and now - self._opened_at < SHORT_S
        self._short = self._short + 1 if short else 0
        if now - self._logged_at < LOG_S:
            self._unlogged += 1
            return
        again = f", {self._unlogged} times more since the last line" if self._unlogged else ""
        _log.warning("node %s lost the connection (%s)%s; retrying", self._node, exc, again, extra={"node": self._node})
        self._logged_at, self._unlogged = now, 0

    def pause_s(self, first_s: float, longest_s: float) -> float:
        """Return the seconds to wait before the next attempt: none after a long connection, otherwise increasing."""
        return min(longest_s, first_s * 2.0 ** min(self._short - 1, 16)) if self._short else 0.0
