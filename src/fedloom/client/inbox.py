"""Messages of the server that an agent has not taken yet, bounded."""

from __future__ import annotations

import threading
from collections import deque

from fedloom.core.errors import (
    FedloomError,
)
from fedloom.core.messages import ToAgent

INBOX_MESSAGES, INBOX_BYTES = 4096, 64 << 20
"""What has come and is not taken yet, at most; more is not read from the connection."""


class Inbox:
    """Messages of the server that the agent has not taken yet. Adding waits while there are too many bytes."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._messages: deque[tuple[ToAgent | FedloomError, int]] = deque()
        self._bytes = 0
        self._closed = False

    def put(self, message: ToAgent | FedloomError, size: int = 0) -> None:
        """Add a message of this size (bytes) once there is room for it; after `close` it is dropped."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._messages or self._has_room(size))
            if not self._closed:
                self._messages.append((message, size))
                self._bytes += size
                self._changed.notify_all()

    def get(self, timeout_s: float) -> ToAgent | FedloomError | None:
        """Take the first message; None if none arrives within `timeout_s` seconds."""
        with self._changed:
            if timeout_s > 0:
                self._changed.wait_for(lambda: bool(self._messages), timeout_s)
            if not self._messages:
                return None
            message, size = self._messages.popleft()
            self._bytes -= size
            self._changed.notify_all()
            return message

    def close(self) -> None:
        """Release threads that wait in `put`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _has_room(self, size: int) -> bool:
        return len(self._messages) < INBOX_MESSAGES and self._bytes + size <= INBOX_BYTES
