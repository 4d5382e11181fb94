"""Maps `FedloomError` to gRPC status; wraps every servicer method. Every error leaves the server here."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator

import grpc

from fedloom.core.errors import FedloomError, Forbidden, LimitExceeded, Unauthenticated
from fedloom.server.access.call_context import CallEnded
from fedloom.server.access.calls import Pace
from fedloom.server.access.public_text import without_paths

_log = logging.getLogger(__name__)

REJECTIONS, REJECTION_S = 30, 2.0
"""Rejected calls of one address that are logged in a burst, and seconds per further one."""
MAX_ADDRESSES = 1024
"""Maximum number of addresses whose rejected calls are counted separately."""
MAX_STATUS_BYTES = 2000
"""Limit of an error's text on the wire. gRPC clients accept 8 KiB, in which a byte may be escaped as three."""


class Rejections:
    """Logs rejected calls, at a limited rate per address: a caller may repeat one at will. Thread-safe.

    Args:
        now: the clock, in seconds; tests replace it.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now, self._lock = now, threading.Lock()
        self._pace, self._addresses = self._fresh(), set[str]()
        self._suppressed: dict[str, int] = {}

    def log(self, peer: str, reason: str) -> None:
        """Log a rejected call.

        Args:
            peer: origin of the call, as gRPC writes addresses.
            reason: why it was rejected.
        """
        address = peer.rpartition(":")[0]
        with self._lock:
            if address not in self._addresses and len(self._addresses) >= MAX_ADDRESSES:
                self._pace, self._addresses, self._suppressed = self._fresh(), set(), {}
            self._addresses.add(address)
            try:
                self._pace.enter(address)
            except LimitExceeded:
                self._suppressed[address] = self._suppressed.get(address, 0) + 1
                return
            more = self._suppressed.pop(address, 0)
        _log.warning("a call from %s was rejected: %s%s", peer, reason, f" (and {more} before it)" if more else "")

    def _fresh(self) -> Pace:
        return Pace(REJECTIONS, REJECTION_S, "rejected calls from", self._now)


_rejections = Rejections()


@contextlib.contextmanager
def answering(context: grpc.ServicerContext, known: str = "") -> Iterator[None]:
    """Convert errors to gRPC statuses, without paths of the server.

    Args:
        context: the call's context.
        known: text that the caller sent; paths in it are not shortened.
    """
    try:
        yield
    except FedloomError as exc:
        reported = _short(without_paths(exc.public_message(), known))
        if exc.public is not None:
            _log.error("%s", exc)
        elif isinstance(exc, Unauthenticated | Forbidden):
            _rejections.log(context.peer(), reported)
        context.abort(grpc.StatusCode[exc.status], reported)
    except CallEnded:
        raise
    except sqlite3.ProgrammingError as exc:
        if "closed database" not in str(exc):
            _log.exception("a call failed")
            context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is shutting down")
    except Exception as exc:
        if not context.is_active():
            raise CallEnded from exc
        _log.exception("a call failed")
        context.abort(grpc.StatusCode.INTERNAL, str(FedloomError.public))


def _short(text: str) -> str:
    """Truncate a text to fit into a status: errors may quote input of any length."""
    data = text.encode(errors="backslashreplace")
    return data.decode() if len(data) <= MAX_STATUS_BYTES else f"{data[:MAX_STATUS_BYTES].decode(errors='ignore')}…"
