"""Agents as the coordinator knows them: who they are, what they hold, what they have done."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from fedloom.core.messages import GroupKey, Hello, ToAgent

MAX_UNREAD = 10_000
"""Messages an agent may leave unread; the rest are lost, and so, soon, is the agent."""


class Mailbox:
    """Messages on their way to one session of one agent.

    Each message that wakes the stream costs system calls on both sides, so what can wait (`put_by`) travels with the
    next one that cannot.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[ToAgent | None] = queue.SimpleQueue()
        self._aside: queue.SimpleQueue[ToAgent] = queue.SimpleQueue()

    @property
    def overflown(self) -> bool:
        """Whether too much was left unread."""
        return self._queue.qsize() + self._aside.qsize() >= MAX_UNREAD

    def put(self, message: ToAgent) -> None:
        """Add a message, after those put by."""
        self.flush()
        if not self.overflown:
            self._queue.put(message)

    def put_by(self, message: ToAgent) -> None:
        """Add a message that leaves with the next one, or with `flush`."""
        if not self.overflown:
            self._aside.put(message)

    def flush(self) -> None:
        """Let go what was put by."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.put(self._aside.get_nowait())

    def get(self, timeout_s: float | None = None) -> ToAgent | None:
        """The next message; None when the mailbox was closed. Raises `queue.Empty` after `timeout_s`."""
        self.flush()
        return self._queue.get(timeout=timeout_s) if timeout_s != 0 else self._queue.get_nowait()

    def get_all(self, limit: int) -> list[ToAgent]:
        """Wait for a message, then take up to `limit` that are there; empty when the mailbox was closed."""
        messages: list[ToAgent] = []
        message = self._queue.get()
        while message is not None:
            messages.append(message)
            if len(messages) == limit:
                return messages
            try:
                message = self._queue.get_nowait()
            except queue.Empty:
                return messages
        if messages:
            self._queue.put(None)  # the end comes after what was there
        return messages

    def close(self) -> None:
        """End the stream that reads this, after what is in it."""
        self.flush()
        self._queue.put(None)


@dataclass
class Node:
    """One agent as the coordinator knows it."""

    hello: Hello
    locality: str
    """`process`, `host` or `remote`."""
    mailbox: Mailbox | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    told_runs: set[str] = field(default_factory=set)
    assigned: dict[GroupKey, float] = field(default_factory=dict)
    """Groups it holds, with the time each was pushed (monotonic seconds)."""
    seen: float = field(default_factory=time.monotonic)
    gone_since: float | None = None
    fresh: bool = True
    """No heartbeat of this session yet."""
    bytes_down: int = 0
    bytes_up: int = 0
    groups_done: dict[str, int] = field(default_factory=dict)
    """Groups finished, by run."""
    busy_s: dict[str, float] = field(default_factory=dict)
    """Seconds in work, by run."""

    @property
    def online(self) -> bool:
        return self.mailbox is not None
